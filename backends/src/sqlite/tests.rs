//! The database behind its threads: groups, damage, versions, and what ties it to its installation.

use std::collections::BTreeMap;

use super::*;
use crate::installation::compare::Found;
use crate::installation::witness::read_note;
use crate::installation::{Commit, Installation, Numbers, Store, Witnesses};

const SCHEMA: Schema = Schema {
    name: "numbers",
    application_id: 7,
    steps: &["CREATE TABLE numbers (number INTEGER PRIMARY KEY) STRICT;"],
};

const NEWER_SCHEMA: Schema =
    Schema { steps: &[SCHEMA.steps[0], "ALTER TABLE numbers ADD COLUMN name TEXT NOT NULL DEFAULT 'one';"], ..SCHEMA };

fn open(path: &Path, schema: Schema) -> Result<Sqlite, Fault> {
    Sqlite::open(path, schema, CACHE_BYTES, || ())
}

fn insert(connection: &Connection, number: i64) -> Result<(), Fault> {
    connection.execute("INSERT INTO numbers VALUES (?1)", [number])?;
    Ok(())
}

async fn count(db: &Sqlite) -> i64 {
    let count = |connection: &Connection| {
        Ok::<_, Fault>(connection.query_row("SELECT count(*) FROM numbers", [], |row| row.get(0))?)
    };
    db.read(count).await.unwrap()
}

#[tokio::test]
async fn a_refused_write_takes_nothing_of_its_neighbours_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let db = Arc::new(open(&folder.path().join("numbers.db"), SCHEMA).unwrap());

    let writes: Vec<_> = (0..100i64)
        .map(|number| {
            let db = db.clone();
            tokio::spawn(async move {
                db.write(move |connection| {
                    insert(connection, number)?;
                    if number % 2 == 1 { insert(connection, number) } else { Ok(()) }
                })
                .await
                .is_ok()
            })
        })
        .collect();
    let mut stood = 0;
    for write in writes {
        stood += i64::from(write.await.unwrap());
    }

    assert_eq!((stood, count(&db).await), (50, 50));
}

#[tokio::test]
async fn a_row_that_breaks_a_rule_of_its_table_fails_the_request_and_is_no_damage() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder.path().join("numbers.db"), SCHEMA).unwrap();
    db.write(|connection| insert(connection, 1)).await.unwrap();

    let twice = db.write(|connection| insert(connection, 1)).await;
    let after = db.write(|connection| insert(connection, 2)).await;

    assert!(matches!(twice, Err(Fault::Refused(_))), "{twice:?}");
    assert_eq!((after.is_ok(), db.damage()), (true, None));
}

#[tokio::test]
async fn a_transaction_that_sqlite_took_back_is_told_to_all_who_wrote_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder.path().join("numbers.db"), SCHEMA).unwrap();
    let fill = |first: i64| {
        move |connection: &Connection| {
            for number in first..first + 100_000 {
                insert(connection, number)?;
            }
            Ok::<(), Fault>(())
        }
    };
    db.write(|connection| Ok::<_, Fault>(connection.pragma_update(None, "max_page_count", 20)?)).await.unwrap();

    let (small, large, after) =
        tokio::join!(db.write(|c| insert(c, -1)), db.write(fill(0)), db.write(|c| insert(c, -2)));

    let Err(Fault::Unavailable(_)) = large else { panic!("20 pages hold no 100,000 rows: {large:?}") };
    assert_eq!(count(&db).await, i64::from(small.is_ok()) + i64::from(after.is_ok()));
}

#[tokio::test]
async fn what_is_not_ours_or_from_a_later_version_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("numbers.db");
    let db = open(&path, SCHEMA).unwrap();
    db.write(|connection| insert(connection, 1)).await.unwrap();
    drop(db);

    let other = open(&path, Schema { application_id: 8, name: "letters", ..SCHEMA }).err();
    let older = open(&path, Schema { steps: &[], ..SCHEMA }).err();
    std::fs::write(folder.path().join("text.db"), "this is not a database, whatever its name says".repeat(100))
        .unwrap();
    let text = open(&folder.path().join("text.db"), SCHEMA).err();

    for fault in [other, older, text] {
        assert!(matches!(fault, Some(Fault::Damaged(_))), "{fault:?}");
    }
    assert_eq!(count(&open(&path, SCHEMA).unwrap()).await, 1);
}

#[tokio::test]
async fn an_older_file_is_brought_to_the_newest_version_with_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("numbers.db");
    let db = open(&path, SCHEMA).unwrap();
    db.write(|connection| insert(connection, 1)).await.unwrap();
    drop(db);

    let db = open(&path, NEWER_SCHEMA).unwrap();

    let name = db
        .read(|connection| Ok::<String, Fault>(connection.query_row("SELECT name FROM numbers", [], |row| row.get(0))?))
        .await;
    assert_eq!(name.unwrap(), "one");
}

#[tokio::test]
async fn a_broken_rule_of_ours_ends_in_an_error_and_not_in_a_caller_that_waits_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder.path().join("numbers.db"), SCHEMA).unwrap();

    let broken = db.write(|_| -> Result<(), Fault> { panic!("broken") }).await;
    let after = db.write(|connection| insert(connection, 1)).await;

    assert!(matches!(broken, Err(Fault::Damaged(_))));
    assert!(matches!(after, Err(Fault::Damaged(_))));
}

/// Opened as an installation's store, filled and closed; the commit that it reached.
async fn guarded(folder: &Path, witnesses: &Arc<Witnesses>, rows: std::ops::Range<i64>) -> Commit {
    let guard = Guard { store: Store::Ledger, witnesses: witnesses.clone(), cache_bytes: CACHE_BYTES };
    let db = Sqlite::open_guarded(&folder.join("numbers.db"), SCHEMA, Some(guard), || ()).unwrap();
    for number in rows {
        db.write(move |connection| insert(connection, number)).await.unwrap();
    }
    drop(db);
    let (found, _) = survey(&folder.join("numbers.db")).unwrap();
    let Found::Marked(installation, Some(commit)) = found else { panic!("{found:?}") };
    assert_eq!(installation, witnesses.installation());
    commit
}

fn witnesses(folder: &Path, installation: Installation) -> Arc<Witnesses> {
    let places = (vec![folder.join("witness/ledger")], Commit::default());
    Witnesses::open(installation, Numbers::default(), &BTreeMap::from([(Store::Ledger, places)])).unwrap()
}

#[tokio::test]
async fn a_note_of_every_commit_lies_elsewhere_before_anybody_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let witnesses = witnesses(folder.path(), Installation::new());
    let guard = Guard { store: Store::Ledger, witnesses, cache_bytes: CACHE_BYTES };
    let db = Sqlite::open_guarded(&folder.path().join("numbers.db"), SCHEMA, Some(guard), || ()).unwrap();

    for number in 1..=20 {
        db.write(move |connection| insert(connection, number)).await.unwrap();

        let note = read_note(&folder.path().join("witness/ledger")).unwrap().unwrap();
        assert_eq!(note.commit.sequence, number as u64);
    }
}

#[tokio::test]
async fn every_page_is_checked_and_no_flip_cut_or_older_page_passes() {
    let folder = tempfile::tempdir().unwrap();
    let witnesses = witnesses(folder.path(), Installation::new());
    guarded(folder.path(), &witnesses, 0..50).await;
    let path = folder.path().join("numbers.db");
    let older = std::fs::read(&path).unwrap();
    guarded(folder.path(), &witnesses, 50..2000).await;
    let whole = std::fs::read(&path).unwrap();
    let sums = std::fs::read(pages::sums_path(&path)).unwrap();
    let damaged = |what: &str| {
        let (found, _) = survey(&path).unwrap();
        assert!(matches!(found, Found::Damaged(_)), "{what}: {found:?}");
    };

    for at in (0..whole.len()).step_by(whole.len() / 37) {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        std::fs::write(&path, flipped).unwrap();
        damaged(&format!("a byte flipped at {at}"));
    }
    for bytes in [&whole[..whole.len() / 2], &whole[..4096], &vec![0; whole.len()][..], &older[..]] {
        std::fs::write(&path, bytes).unwrap();
        damaged("another length, zeros or an older file");
    }
    std::fs::write(&path, &whole).unwrap();
    for bytes in [&sums[..20], &sums[..8], &[][..], &vec![0; sums.len()][..]] {
        std::fs::write(pages::sums_path(&path), bytes).unwrap();
        damaged("the sums themselves");
    }
    std::fs::remove_file(pages::sums_path(&path)).unwrap();
    damaged("the sums are away");

    remake_sums(&path).unwrap();
    guarded(folder.path(), &witnesses, 2000..2001).await;
}

#[tokio::test]
async fn a_crash_at_any_commit_leaves_a_file_that_is_whole_and_has_all_that_was_noted() {
    let folder = tempfile::tempdir().unwrap();
    let witnesses = witnesses(folder.path(), Installation::new());
    let path = folder.path().join("numbers.db");
    let guard = Guard { store: Store::Ledger, witnesses: witnesses.clone(), cache_bytes: CACHE_BYTES };
    let db = Sqlite::open_guarded(&path, SCHEMA, Some(guard), || ()).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let copied = copy.path().join("numbers.db");
    let mut checkpoints = 0;

    for round in 0..40i64 {
        // Some 300 KB each: the write-ahead log is copied and begun anew several times.
        let many = move |connection: &Connection| {
            (0..20_000).try_for_each(|number| insert(connection, round * 20_000 + number))
        };
        db.write(many).await.unwrap();
        let sums = std::fs::read(pages::sums_path(&path)).unwrap().len();
        checkpoints += usize::from(sums > 100);
        // As kill -9 would leave it: the files as they are, without closing them.
        for (from, to) in [
            (path.clone(), copied.clone()),
            (pages::wal_path(&path), pages::wal_path(&copied)),
            (pages::sums_path(&path), pages::sums_path(&copied)),
        ] {
            std::fs::copy(from, to).unwrap();
        }
        let (found, _) = survey(&copied).unwrap();
        let Found::Marked(_, Some(commit)) = found else { panic!("round {round}: {found:?}") };
        assert_eq!(commit.sequence, round as u64 + 1);
    }

    assert!(checkpoints > 0, "the log was copied while it ran");
    let wal = std::fs::metadata(pages::wal_path(&path)).unwrap().len();
    assert!(wal < 2 * WAL_BYTES_MAX, "the write-ahead log is bounded: {wal}");
}

#[tokio::test]
async fn a_byte_flipped_in_the_write_ahead_log_takes_commits_away_and_that_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let witnesses = witnesses(folder.path(), Installation::new());
    let path = folder.path().join("numbers.db");
    let guard = Guard { store: Store::Ledger, witnesses, cache_bytes: CACHE_BYTES };
    let db = Sqlite::open_guarded(&path, SCHEMA, Some(guard), || ()).unwrap();
    for number in 0..30 {
        db.write(move |connection| insert(connection, number)).await.unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    let copied = copy.path().join("numbers.db");
    std::fs::copy(&path, &copied).unwrap();
    std::fs::copy(pages::sums_path(&path), pages::sums_path(&copied)).unwrap();
    let wal = std::fs::read(pages::wal_path(&path)).unwrap();

    for at in (0..wal.len()).step_by(wal.len() / 23) {
        let mut flipped = wal.clone();
        flipped[at] ^= 1;
        std::fs::write(pages::wal_path(&copied), &flipped).unwrap();

        let (found, _) = survey(&copied).unwrap();

        let reached = match found {
            Found::Marked(_, Some(commit)) => commit.sequence,
            Found::Absent | Found::Unmarked | Found::Damaged(_) | Found::Marked(_, None) => 0,
        };
        assert!(reached < 30, "byte {at}: {reached}");
        assert_eq!(std::fs::read(pages::wal_path(&copied)).unwrap(), flipped, "looking changes nothing");
    }
}

#[tokio::test]
async fn the_file_alone_is_looked_at_without_its_write_ahead_log_and_without_touching_anything() {
    let folder = tempfile::tempdir().unwrap();
    let witnesses = witnesses(folder.path(), Installation::new());
    let closed = guarded(folder.path(), &witnesses, 0..30).await;
    let path = folder.path().join("numbers.db");
    let guard = Guard { store: Store::Ledger, witnesses, cache_bytes: CACHE_BYTES };
    let db = Sqlite::open_guarded(&path, SCHEMA, Some(guard), || ()).unwrap();
    db.write(|connection| insert(connection, 30)).await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    let copied = copy.path().join("a name % with?#odd signs.db");
    for (from, to) in [
        (path.clone(), copied.clone()),
        (pages::wal_path(&path), pages::wal_path(&copied)),
        (pages::sums_path(&path), pages::sums_path(&copied)),
    ] {
        std::fs::copy(from, to).unwrap();
    }
    let bytes = |path: &Path| std::fs::read(path).unwrap();
    let before = [bytes(&copied), bytes(&pages::wal_path(&copied))];

    let alone = survey_without_wal(&copied).unwrap();

    assert!(matches!(alone, Found::Marked(_, Some(commit)) if commit == closed), "{alone:?}");
    assert_eq!([bytes(&copied), bytes(&pages::wal_path(&copied))], before);
    assert_eq!(std::fs::read_dir(copy.path()).unwrap().count(), 3, "no file was made");
    let (with_wal, _) = survey(&copied).unwrap();
    assert!(matches!(with_wal, Found::Marked(_, Some(commit)) if commit.sequence == closed.sequence + 1));
    let mut flipped = before[0].clone();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    std::fs::write(&copied, flipped).unwrap();
    assert!(matches!(survey_without_wal(&copied).unwrap(), Found::Damaged(_)));
}

#[tokio::test]
async fn a_file_that_was_removed_or_replaced_under_its_process_takes_no_more_writes() {
    for replaced in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers.db");
        let db = open(&path, SCHEMA).unwrap();
        db.write(|connection| insert(connection, 1)).await.unwrap();
        std::fs::rename(&path, folder.path().join("aside")).unwrap();
        if replaced {
            std::fs::copy(folder.path().join("aside"), &path).unwrap();
        }

        let after = db.write(|connection| insert(connection, 2)).await;

        assert!(matches!(&after, Err(Fault::Damaged(reason)) if reason.contains("numbers.db")), "{after:?}");
        assert!(db.damage().is_some_and(|reason| reason.contains("removed or replaced")));
    }
}

#[tokio::test]
async fn a_write_ahead_log_that_is_away_costs_nothing_whether_it_comes_back_or_not() {
    for (becomes, comes_back) in [("away", false), ("away", true), ("older", false), ("older", true)] {
        let what = format!("{becomes}, comes back: {comes_back}");
        let folder = tempfile::tempdir().unwrap();
        let witnesses = witnesses(folder.path(), Installation::new());
        let path = folder.path().join("numbers.db");
        let (wal, aside) = (pages::wal_path(&path), folder.path().join("aside"));
        let guard = Guard { store: Store::Ledger, witnesses: witnesses.clone(), cache_bytes: CACHE_BYTES };
        let db = Sqlite::open_guarded(&path, SCHEMA, Some(guard), || ()).unwrap();
        db.write(|connection| insert(connection, 0)).await.unwrap();
        let older = std::fs::read(&wal).unwrap();
        db.write(|connection| (1..2000).try_for_each(|number| insert(connection, number))).await.unwrap();
        let whole = std::fs::read(&wal).unwrap();
        std::fs::rename(&wal, &aside).unwrap();
        if becomes == "older" {
            std::fs::write(&wal, &older).unwrap();
        }

        let after = db.write(|connection| insert(connection, 2000)).await;
        assert_eq!(count(&db).await, 2000, "{what}");
        drop(db);

        assert!(matches!(&after, Err(Fault::Damaged(reason)) if reason.contains("numbers.db-wal")), "{after:?}");
        assert!(std::fs::read(&aside).unwrap() == whole, "what may come back is left as it is: {what}");
        if comes_back {
            std::fs::rename(&aside, &wal).unwrap();
        } else if becomes == "older" {
            // As a repair sets it aside, because the file has it all.
            assert!(matches!(survey_without_wal(&path), Ok(Found::Marked(..))), "{what}");
            std::fs::remove_file(&wal).unwrap();
        }
        let (found, _) = survey(&path).unwrap();
        assert!(matches!(found, Found::Marked(_, Some(commit)) if commit.sequence == 2), "{what}: {found:?}");
        guarded(folder.path(), &witnesses, 2000..2001).await;
        assert_eq!(count(&open(&path, SCHEMA).unwrap()).await, 2001, "{what}");
    }
}

#[tokio::test]
async fn nothing_is_copied_to_a_database_that_is_not_in_its_place_or_has_no_sums_there() {
    for moved in ["numbers.db", "numbers.db.sums"] {
        let folder = tempfile::tempdir().unwrap();
        let witnesses = witnesses(folder.path(), Installation::new());
        let guard = Guard { store: Store::Ledger, witnesses: witnesses.clone(), cache_bytes: CACHE_BYTES };
        let path = folder.path().join("numbers.db");
        let db = Sqlite::open_guarded(&path, SCHEMA, Some(guard), || ()).unwrap();
        db.write(|connection| insert(connection, 1)).await.unwrap();
        let (place, aside) = (folder.path().join(moved), folder.path().join("aside"));
        std::fs::rename(&place, &aside).unwrap();
        let whole = std::fs::read(&aside).unwrap();

        let after = db.write(|connection| insert(connection, 2)).await;
        drop(db);

        assert!(matches!(&after, Err(Fault::Damaged(reason)) if reason.contains(moved)), "{after:?}");
        assert!(std::fs::read(&aside).unwrap() == whole, "{moved} was written to");
        std::fs::rename(&aside, &place).unwrap();
        let (found, _) = survey(&path).unwrap();
        assert!(matches!(found, Found::Marked(_, Some(commit)) if commit.sequence == 1), "{moved}: {found:?}");
    }
}
