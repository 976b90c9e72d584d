"""Works on one node: watches for its own machines, does the work through libvirt and QEMU, reports back."""
