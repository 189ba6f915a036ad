"""Pure functions from wanted state to text and bytes: nft rulesets, DNS zones and messages."""
