"""From a run to a line: exported models and who runs them, a folder that is watched, a service."""
