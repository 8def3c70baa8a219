"""Commands about jobs: plan, run, extract, submit and what follows."""
