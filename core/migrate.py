"""``qe migrate``: bring the database to the newest schema. In the images also ``python -m core.migrate``."""

from __future__ import annotations

from pathlib import Path

import click
from alembic import command
from alembic.config import Config

from core import pooler, preflight
from core.logs import configure_logging
from core.settings import read_settings

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
"""The directory of migrations, which lies beside this package in a checkout and in an installed wheel."""


def migrate(database_url: str) -> None:
    """Any number may run at once: one migrates, the others find nothing left to do."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["database_url"] = database_url
    command.upgrade(config, "head")


@click.command("migrate")
@click.option(
    "--accept-new-secret", is_flag=True, help="Use this database with another QE_SECRET; voids keys, webhooks."
)
def main(accept_new_secret: bool) -> None:
    """Bring the database of QE_DATABASE_URL to the newest schema; safe to repeat."""
    settings = pooler.direct(read_settings(), "a migration")
    configure_logging(settings.log_format)
    if settings.database_url is None:
        raise SystemExit("migrations need QE_DATABASE_URL, postgresql://… (`qe serve` migrates its own database)")
    compare = settings.secret is not None and not accept_new_secret
    preflight.check(settings, models=False, secret=compare)
    migrate(settings.database_url)
    if accept_new_secret:
        preflight.accept_secret(settings)
    elif compare:
        preflight.check(settings, models=False, secret=True)  # of a new database the first secret is recorded


if __name__ == "__main__":
    main()
