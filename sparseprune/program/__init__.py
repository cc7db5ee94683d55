"""Programs: whole regions of a converted model, run by one native call each."""
