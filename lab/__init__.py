"""A whole cluster on one machine: private slapd, private libvirt daemons, tiny guests."""
