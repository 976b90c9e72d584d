"""Backs up and restores the KVM machines of a whole cluster, with OpenLDAP as the only thing between its parts."""
