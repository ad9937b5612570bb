//! What SQLite makes of the queries that clients wait for: each finds its page by an index, however much is kept.

use sqlx::{ConnectOptions, Row};

use super::{MIGRATIONS, erase, referrers, tags};

/// The lines of the plan.
async fn plan(sql: &'static str) -> Vec<String> {
    let options = sqlx::sqlite::SqliteConnectOptions::new().in_memory(true);
    let mut connection = options.connect().await.unwrap();
    MIGRATIONS.run(&mut connection).await.unwrap();
    let explained = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
    let rows = sqlx::query(explained).fetch_all(&mut connection).await.unwrap();
    rows.iter().map(|row| row.get::<String, _>("detail")).collect()
}

fn scans(plan: &[String]) -> Vec<&String> {
    // A scan of a subquery is one of what another line finds.
    plan.iter().filter(|line| line.starts_with("SCAN") && !line.contains("USING")).collect()
}

#[tokio::test]
async fn a_page_of_tags_is_a_search_in_order() {
    // Invariant 17
    let plan = plan(tags::PAGE).await;
    assert!(plan.iter().any(|line| line.contains("(repository=? AND name>?)")), "{plan:#?}");
    assert!(scans(&plan).is_empty() && !plan.iter().any(|line| line.contains("TEMP B-TREE")), "{plan:#?}");
}

#[tokio::test]
async fn a_page_of_names_is_a_search_in_order() {
    // Invariant 17
    let plan = plan(erase::REPOSITORIES).await;
    assert!(plan.iter().any(|line| line.contains("repository_by_shown (<expr>>?)")), "{plan:#?}");
    assert!(scans(&plan).is_empty() && !plan.iter().any(|line| line.contains("TEMP B-TREE")), "{plan:#?}");
}

#[tokio::test]
async fn a_page_of_referrers_is_a_search_in_order() {
    // Invariant 17
    for (sql, found_by) in [
        (referrers::ALL, "manifest_by_subject (subject=? AND digest>?)"),
        (referrers::OF_TYPE, "manifest_by_subject_and_type (subject=? AND artifact_type=? AND digest>?)"),
    ] {
        let plan = plan(sql).await;
        assert!(plan.iter().any(|line| line.contains(found_by)), "{plan:#?}");
        assert!(scans(&plan).is_empty() && !plan.iter().any(|line| line.contains("TEMP B-TREE")), "{plan:#?}");
        let grants = plan.iter().filter(|line| line.contains("manifest_grant"));
        assert!(grants.clone().count() > 0, "{plan:#?}");
        for line in grants {
            assert!(line.contains("(repository=? AND digest=?)"), "not all of the repository is looked at: {plan:#?}");
        }
    }
}
