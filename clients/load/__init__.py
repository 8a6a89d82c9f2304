"""The load tester: many clients that check every tick they receive and measure the cost."""
