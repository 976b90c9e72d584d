"""The law every part obeys: modes, codes, names, leaves, plans, paths and manifests; pure, no input or output."""
