#!/bin/sh
# docker compose run --rm backup                   saves ledger and files below QE_BACKUPS, and says where
# docker compose run --rm backup restore NAME      into an empty database, with everything but postgres stopped
set -eu

save() {
  umask 077  # every tenant's rows and files
  name=$(date -u +%Y%m%dT%H%M%SZ)
  part=/backups/$name.part
  mkdir -p "$part"
  # The ledger first: then every row in it has had its files. Files of later jobs do no harm.
  pg_dump --format=custom --file="$part/ledger.dump"
  if [ -d /var/lib/qe/storage ]; then
    # 1: a file went or grew meanwhile.
    tar --directory /var/lib/qe --create --file "$part/storage.tar" storage || [ $? = 1 ]
  fi
  mv "$part" "/backups/$name"
  echo "saved $name"
}

restore() {
  [ -f "/backups/${1:-}/ledger.dump" ] || { echo "there is no backup '${1:-}'; there are: $(ls /backups)" >&2; exit 1; }
  if [ -n "$(psql --no-psqlrc --tuples-only --command "SELECT 1 FROM pg_tables WHERE schemaname = 'public' LIMIT 1")" ]; then
    echo "the database is not empty: restore into a new volume, before anything but postgres is started" >&2
    exit 1
  fi
  # A dump of one database holds no roles.
  psql --no-psqlrc --quiet --command "DO \$\$ BEGIN CREATE ROLE qe_api NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END \$\$"
  pg_restore --exit-on-error --no-owner --dbname="$PGDATABASE" "/backups/$1/ledger.dump"
  if [ -f "/backups/$1/storage.tar" ]; then
    tar --directory /var/lib/qe --extract --same-owner --file "/backups/$1/storage.tar"
  fi
  echo "restored $1"
}

case ${1:-save} in
  save) save ;;
  restore) shift; restore "$@" ;;
  *) echo "save, or restore NAME" >&2; exit 2 ;;
esac
