"""Commands about stores: show, query, reduce, report, verify, gc, probe-store."""
