"""A whole analysis from one file: its format, the engine that makes its stages, and the stages of each job."""
