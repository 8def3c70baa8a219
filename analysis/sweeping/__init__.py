"""What a sweep shows: rates of labels with intervals, repetition and projections, as numbers, text and picture."""
