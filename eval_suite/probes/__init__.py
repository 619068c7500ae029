"""One file per task family; what a probe trains is small, seeded, and never touches the backbone."""
