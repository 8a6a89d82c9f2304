"""Programs that consume: dashboard, terminal, recorder and load tester."""
