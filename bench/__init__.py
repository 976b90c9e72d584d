"""Figures: what vmkeep does, measured beside a raw tool doing the same work in the same run. Run by `make bench`."""
