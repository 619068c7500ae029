"""Where labelled data comes from: one contract per kind of label, one reader per layout."""
