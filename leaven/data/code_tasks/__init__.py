"""Tasks over functions whose labels are exact by construction: Python functions to pairs of source and target."""
