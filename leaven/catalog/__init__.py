"""Which systems exist: the catalogue, its facets and its search."""
