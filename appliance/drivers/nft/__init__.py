"""nftables: rulesets pushed, and watched for changes by others."""
