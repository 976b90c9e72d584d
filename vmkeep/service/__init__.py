"""What the daemons share: settings, the loop, logs, readiness."""
