//! Plain SQL beside the service, on either database: what an operator would type.

use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Row};

/// A connection of the test's own.
#[derive(Clone)]
pub enum Sql {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

impl Sql {
    pub async fn open(url: &str) -> Self {
        if url.starts_with("postgres") {
            return Self::Postgres(PgPoolOptions::new().max_connections(2).connect(url).await.unwrap());
        }
        let path = url.trim_start_matches("sqlite://");
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .busy_timeout(std::time::Duration::from_secs(10));
        Self::Sqlite(SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap())
    }

    /// Runs a statement; how many rows it changed.
    pub async fn run(&self, statement: &str) -> u64 {
        let statement = AssertSqlSafe(statement.to_owned());
        match self {
            Self::Postgres(pool) => sqlx::query(statement).execute(pool).await.unwrap().rows_affected(),
            Self::Sqlite(pool) => sqlx::query(statement).execute(pool).await.unwrap().rows_affected(),
        }
    }

    /// [`run`](Self::run) for a database that may be down: `None` where it may not have happened.
    pub async fn try_run(&self, statement: &str) -> Option<u64> {
        let statement = AssertSqlSafe(statement.to_owned());
        match self {
            Self::Postgres(pool) => Some(sqlx::query(statement).execute(pool).await.ok()?.rows_affected()),
            Self::Sqlite(pool) => Some(sqlx::query(statement).execute(pool).await.ok()?.rows_affected()),
        }
    }

    /// Rows of text columns; NULL is empty.
    pub async fn rows(&self, query: &str) -> Vec<Vec<String>> {
        let query = AssertSqlSafe(query.to_owned());
        let text = |value: Option<String>| value.unwrap_or_default();
        match self {
            Self::Postgres(pool) => {
                let rows = sqlx::query(query).fetch_all(pool).await.unwrap();
                rows.iter().map(|row| (0..row.len()).map(|index| text(row.get(index))).collect()).collect()
            }
            Self::Sqlite(pool) => {
                let rows = sqlx::query(query).fetch_all(pool).await.unwrap();
                rows.iter().map(|row| (0..row.len()).map(|index| text(row.get(index))).collect()).collect()
            }
        }
    }

    /// A number.
    pub async fn number(&self, query: &str) -> i64 {
        self.rows(query).await[0][0].parse().unwrap()
    }

    /// A time column as text in ms since the epoch.
    pub fn ms(&self, column: &str) -> String {
        match self {
            Self::Postgres(_) => format!("CAST(round(extract(epoch FROM {column}) * 1000) AS bigint)::text"),
            Self::Sqlite(_) => {
                format!("CAST(CAST(round(unixepoch({column}, 'subsec') * 1000) AS integer) AS text)")
            }
        }
    }

    /// Adds accounts `u1`, `u2`, … that nobody can sign in to; the first is an admin. Ids are 1 to `count` on a database
    /// whose account `admin` was not made yet.
    pub async fn seed(&self, first: i64, count: i64) {
        let numbers = match self {
            Self::Postgres(_) => format!("generate_series({first}, {}) AS n(n)", first + count - 1),
            Self::Sqlite(_) => format!(
                "(WITH RECURSIVE n(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM n WHERE n < {}) SELECT n FROM n)",
                first + count - 1
            ),
        };
        let added = self
            .run(&format!(
                "INSERT INTO users (id, username, email, password_hash, role) SELECT n, 'u' || n, 'u' || n || '@x.example', \
                 '-', CASE WHEN n = 1 THEN 'admin' ELSE 'user' END FROM {numbers}"
            ))
            .await;
        assert_eq!(added, u64::try_from(count).unwrap());
    }
}
