"""The load tester: many clients that check every tick they get, and report what it cost."""
