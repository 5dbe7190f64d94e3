"""Ways to see: each file draws one kind of control map, and scores how well two maps agree."""
