"""Labels of replies by a rubric: those of any runs, in one queue, by one judge. Kept apart from scores."""
