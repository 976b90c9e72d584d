"""The host's doors: libvirt, qemu-img, files; one module each, offering only the verbs in use."""
