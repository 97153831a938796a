"""The bus as the agent sees it: one connection without surprises, pulling, stored publishing, streams, discovery."""
