"""The actor: bus connections, subscriptions, dispatch, schedules, settings, embedded servers."""
