"""Tests of the studies; a package, so that this conftest and the one above it are two modules."""
