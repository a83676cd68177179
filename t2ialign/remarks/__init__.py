"""What has no effect, or less than it says: told before the work."""
