#!/bin/bash
# Initialises an empty data directory from the environment, then becomes the server.
#   MARIADB_ROOT_PASSWORD, MARIADB_DATABASE, MARIADB_USER, MARIADB_PASSWORD (also as <NAME>_FILE, and with
#   the prefix MYSQL_), MARIADB_ALLOW_EMPTY_ROOT_PASSWORD; *.sql, *.sql.gz and *.sh in
#   /docker-entrypoint-initdb.d run once, after that.
set -euo pipefail

datadir=/var/lib/mysql
socket=/run/mysqld/mysqld.sock

say() { echo "entrypoint: $*" >&2; }

# Prints the setting from <NAME>, <NAME>_FILE, or the same under the older prefix.
setting() {
    local name file
    for name in "MARIADB_$1" "MYSQL_$1"; do
        file="${name}_FILE"
        if [ -n "${!file:-}" ]; then
            cat -- "${!file}"
            return
        fi
        if [ -n "${!name:-}" ]; then
            printf %s "${!name}"
            return
        fi
    done
}

# Quotes a string for SQL.
quote() {
    local text=${1//\\/\\\\}
    printf "'%s'" "${text//\'/\\\'}"
}

name() { printf '`%s`' "${1//\`/\`\`}"; }

if [ "${1:-}" = "" ] || [ "${1:0:1}" = "-" ]; then
    set -- mariadbd "$@"
fi
if [ "$1" != mariadbd ] && [ "$1" != mysqld ]; then
    exec "$@"
fi
shift

mkdir -p "$datadir" /run/mysqld
as_mysql=()
if [ "$(id -u)" = 0 ]; then
    find "$datadir" /run/mysqld \! -user mysql -exec chown mysql:mysql {} +
    as_mysql=(setpriv --reuid=mysql --regid=mysql --init-groups)
fi

# The marker is written last, so an interrupted initialisation starts over instead of half-working.
marker="$datadir/.initialised"
if [ ! -e "$marker" ] && [ -d "$datadir/mysql" ] && [ ! -e "$datadir/.initialising" ]; then
    : # a data directory from elsewhere: use it as it is
elif [ ! -e "$marker" ]; then
    root_password=$(setting ROOT_PASSWORD)
    allow_empty=$(setting ALLOW_EMPTY_ROOT_PASSWORD)
    if [ -z "$root_password" ] && [ -z "$allow_empty" ]; then
        say "set MARIADB_ROOT_PASSWORD (or MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=1)"
        exit 1
    fi
    database=$(setting DATABASE)
    user=$(setting USER)
    password=$(setting PASSWORD)

    say "initialising $datadir"
    if [ -e "$datadir/.initialising" ]; then
        find "$datadir" -mindepth 1 -maxdepth 1 \! -name .initialising -exec rm -rf {} +
    fi
    "${as_mysql[@]}" touch "$datadir/.initialising"
    "${as_mysql[@]}" mariadb-install-db --datadir="$datadir" --skip-test-db --auth-root-authentication-method=normal >/dev/null

    "${as_mysql[@]}" mariadbd --skip-networking --socket="$socket" &
    server=$!
    trap 'kill -TERM "$server" 2>/dev/null; wait "$server"; exit 143' TERM INT
    for _ in $(seq 300); do
        if mariadb-admin --socket="$socket" --user=root ping >/dev/null 2>&1; then break; fi
        kill -0 "$server" 2>/dev/null || { say "the server stopped while being initialised"; exit 1; }
        sleep 0.1
    done

    {
        echo "SET @@SESSION.SQL_LOG_BIN=0;"
        # The installer also makes root accounts for this host's addresses, without a password.
        echo "DELETE FROM mysql.global_priv WHERE User = '' OR (User = 'root' AND Host <> 'localhost');"
        echo "DELETE FROM mysql.proxies_priv WHERE Host <> 'localhost';"
        echo "FLUSH PRIVILEGES;"
        if [ -n "$database" ]; then
            echo "CREATE DATABASE IF NOT EXISTS $(name "$database");"
        fi
        if [ -n "$user" ] && [ -n "$password" ]; then
            echo "CREATE USER IF NOT EXISTS $(quote "$user")@'%' IDENTIFIED BY $(quote "$password");"
            if [ -n "$database" ]; then
                pattern=${database//_/\\_}
                echo "GRANT ALL ON $(name "$pattern").* TO $(quote "$user")@'%';"
            fi
        fi
        if [ -n "$root_password" ]; then
            echo "CREATE USER IF NOT EXISTS 'root'@'%' IDENTIFIED BY $(quote "$root_password");"
            echo "ALTER USER 'root'@'localhost' IDENTIFIED BY $(quote "$root_password");"
        else
            echo "CREATE USER IF NOT EXISTS 'root'@'%';"
        fi
        echo "GRANT ALL ON *.* TO 'root'@'%' WITH GRANT OPTION;"
        echo "FLUSH PRIVILEGES;"
    } | mariadb --socket="$socket" --user=root

    sql=(mariadb --socket="$socket" --user=root)
    if [ -n "$root_password" ]; then export MYSQL_PWD="$root_password"; fi
    if [ -n "$database" ]; then sql+=("$database"); fi
    for file in /docker-entrypoint-initdb.d/*; do
        case "$file" in
            *.sh) say "running $file"; bash "$file" ;;
            *.sql) say "running $file"; "${sql[@]}" <"$file" ;;
            *.sql.gz) say "running $file"; gunzip -c "$file" | "${sql[@]}" ;;
        esac
    done

    mariadb-admin --socket="$socket" --user=root shutdown
    wait "$server" || true
    trap - TERM INT
    unset MYSQL_PWD
    "${as_mysql[@]}" touch "$marker"
    rm -f "$datadir/.initialising"
    say "initialised"
fi

# The server must not carry the passwords in its environment.
for variable in $(compgen -e | grep -E '^(MARIADB|MYSQL)_.*PASSWORD(_FILE)?$' || true); do
    unset "$variable"
done
exec "${as_mysql[@]}" mariadbd "$@"
