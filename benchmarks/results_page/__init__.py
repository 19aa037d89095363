"""docs/results.md: what is kept of a benchmark's run (`evidence`), what its tests say (`findings`), the papers' own
numbers (`papers`), and the page of all of them (`page`)."""
