"""Studies: a job, what a judge says of its replies, and the numbers that are made of both."""
