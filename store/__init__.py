"""PostgreSQL: pool, named SQL, migrations, one module per aggregate. No rule lives here."""
