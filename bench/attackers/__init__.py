"""What one container may do to all others. Run only inside network namespaces that the test or work has made."""
