"""The admin's command line `vmkeep`; knows the directory only."""
