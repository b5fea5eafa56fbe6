"""Physical models, one file each.  They import `sbi_physics.core` and nothing else of the package."""
