"""The load tester: many clients in several processes, and a report."""
