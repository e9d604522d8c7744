"""Programs that were here before, in their own words."""
