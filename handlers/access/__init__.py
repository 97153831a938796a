"""Who may do what: users, teams, API keys, and what a manager's word reaches."""
