//! The comparison at a start: what each store holds against what the others know of it. Pure: the shell looks at the
//! files and hands in what it saw.

use std::collections::BTreeMap;
use std::fmt;

use super::file::Fingerprint;
use super::{Commit, Installation, InstallationFile, InstallationId, Note, Numbers, Raise, Store};

/// What was found where a store should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    Absent,
    /// It holds something, and no id: it was written by a release that had none.
    Unmarked,
    /// Of this installation; the commit is None where only the store itself can tell, when it is opened.
    Marked(Installation, Option<Commit>),
    Damaged(String),
}

/// Somebody's note about a store, and where it was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    pub place: String,
    pub note: Note,
}

/// A copy of the installation's file, or why it cannot be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileCopy {
    pub place: String,
    pub file: Result<Option<InstallationFile>, String>,
}

/// All that was seen of a data folder.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Survey {
    pub stores: BTreeMap<Store, Found>,
    pub claims: Vec<Claim>,
    pub copies: Vec<FileCopy>,
    /// Of the region key that lies there.
    pub region_key: Option<Fingerprint>,
    /// Notes that cannot be read; each store's others still speak.
    pub unreadable: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing is there: an installation begins.
    Fresh,
    /// Whole, from a release without ids: it gets one, once.
    Adopt,
    /// All belong together. What is said must be said aloud; nothing of it is a loss.
    Together { installation: Installation, warnings: Vec<String> },
    /// Starting would lose or mix something up.
    Refused(Vec<Finding>),
    /// A repair or a restore has begun to bring the stores to this incarnation, and did not come to its end: some are of
    /// the one before, and numbers may not lie above the lost ones yet. It goes on from here, with what is wrong besides.
    Unfinished { installation: Installation, raise: Raise, findings: Vec<Finding> },
}

/// One thing that is wrong with one store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub store: Store,
    pub problem: Problem,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Problem {
    Missing,
    /// It holds less than somebody knows that it held.
    Behind {
        found: Commit,
        known: Commit,
        place: String,
    },
    /// As many commits, and not the same ones: two copies went different ways.
    Diverged {
        sequence: u64,
        place: String,
    },
    OtherInstallation {
        found: Option<InstallationId>,
        expected: InstallationId,
    },
    /// A copy from before a loss was accepted or a copy restored, or a repair that did not come to its end.
    OtherIncarnation {
        found: u32,
        expected: u32,
    },
    Damaged(String),
}

impl Finding {
    /// Whether the store itself can go on with what it still holds; otherwise it begins anew.
    pub fn leaves_something(&self) -> bool {
        match self.problem {
            Problem::Behind { .. } | Problem::Diverged { .. } | Problem::OtherIncarnation { .. } => true,
            Problem::Missing | Problem::OtherInstallation { .. } | Problem::Damaged(_) => false,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store = self.store.name();
        match &self.problem {
            Problem::Missing => write!(f, "{store}: it is missing"),
            Problem::Behind { found, known, place } => write!(
                f,
                "{store}: it holds {} commits, and {place} knows of {}: the last {} are missing",
                found.sequence,
                known.sequence,
                known.sequence.saturating_sub(found.sequence)
            ),
            Problem::Diverged { sequence, place } => {
                write!(
                    f,
                    "{store}: its commit {sequence} is another one than {place} knows: it is a copy that went its own way"
                )
            }
            Problem::OtherInstallation { found: Some(found), expected } => {
                write!(f, "{store}: it belongs to installation {found}, and the others to {expected}")
            }
            Problem::OtherInstallation { found: None, expected } => {
                write!(f, "{store}: it belongs to no installation, and the others to {expected}")
            }
            Problem::OtherIncarnation { found, expected } => {
                write!(f, "{store}: it is of incarnation {found}, and the others of {expected}")
            }
            Problem::Damaged(reason) => write!(f, "{store}: it is damaged: {reason}"),
        }
    }
}

impl Survey {
    /// Every number known to have been given, from whoever knows of it.
    pub fn numbers(&self) -> Numbers {
        self.claims.iter().fold(Numbers::default(), |numbers, claim| numbers.max(claim.note.numbers))
    }

    /// The newest commit of a store that anybody knows of, within one installation.
    pub fn known(&self, store: Store, id: InstallationId) -> Option<&Claim> {
        let about = |claim: &&Claim| claim.note.store == store && claim.note.installation.id == id;
        self.claims
            .iter()
            .filter(about)
            .max_by_key(|claim| (claim.note.installation.incarnation, claim.note.commit.sequence))
    }

    /// Whether a store would belong to the others and have all that they know of it, if this were what it holds. What
    /// nobody else knows of, nobody can call whole.
    pub fn would_belong(&self, store: Store, found: Found) -> bool {
        let Some(installation) = self.installation() else { return false };
        let is_known = !store.is_witnessed()
            || self.claims.iter().any(|claim| claim.note.store == store && claim.note.installation == installation);
        let is_marked = matches!(found, Found::Marked(..));
        let mut then = self.clone();
        then.stores.insert(store, found);
        is_known && is_marked && then.problem_of(store, installation, true).is_none()
    }

    /// What the copies of the installation's file say: the highest incarnation among them, and whole if any is. A copy
    /// that came with a store of another installation does not count.
    pub fn file(&self) -> Option<InstallationFile> {
        let files = || self.copies.iter().filter_map(|copy| copy.file.as_ref().ok()?.as_ref());
        let id = files().next()?.installation.id;
        let ours = files().filter(|file| file.installation.id == id);
        ours.cloned().max_by_key(|file| (file.installation.incarnation, file.is_whole))
    }

    fn found(&self, store: Store) -> &Found {
        self.stores.get(&store).unwrap_or(&Found::Absent)
    }

    /// The id that this folder goes by: the file's, or, where all copies are lost, a store's.
    pub fn installation(&self) -> Option<Installation> {
        let of_file = self.file().map(|file| file.installation);
        let of_store = || {
            let marked = self.stores.values().filter_map(|found| match found {
                Found::Marked(installation, _) => Some(*installation),
                Found::Absent | Found::Unmarked | Found::Damaged(_) => None,
            });
            marked.max_by_key(|installation| installation.incarnation)
        };
        let of_claim = || self.claims.iter().map(|claim| claim.note.installation).max_by_key(|i| i.incarnation);
        of_file.or_else(of_store).or_else(of_claim)
    }

    pub fn compare(&self) -> Verdict {
        let Some(installation) = self.installation() else { return self.compare_without_ids() };
        if let Some(raise) = self.file().filter(|file| !file.is_whole).and_then(|file| file.raised_by) {
            return Verdict::Unfinished { installation, raise, findings: self.findings_of_raise(installation) };
        }
        let is_whole = self.file().is_none_or(|file| file.is_whole);
        let mut findings = Vec::new();
        for store in Store::ALL {
            let problem = self.problem_of(store, installation, is_whole);
            findings.extend(problem.map(|problem| Finding { store, problem }));
        }
        if findings.is_empty() {
            return Verdict::Together { installation, warnings: self.warnings(is_whole) };
        }
        Verdict::Refused(findings)
    }

    /// What is wrong besides that some stores are still of the incarnation before.
    fn findings_of_raise(&self, raised: Installation) -> Vec<Finding> {
        let before = Installation { incarnation: raised.incarnation.saturating_sub(1), ..raised };
        let mut findings = Vec::new();
        for store in Store::ALL {
            let expected = match self.found(store) {
                Found::Marked(found, _) if *found == before => before,
                Found::Marked(..) | Found::Absent | Found::Unmarked | Found::Damaged(_) => raised,
            };
            let problem = self.problem_of(store, expected, false);
            findings.extend(problem.map(|problem| Finding { store, problem }));
        }
        findings
    }

    /// Nothing says that these stores were ever one installation: either there are none, or all of them are.
    fn compare_without_ids(&self) -> Verdict {
        let mut findings = Vec::new();
        let is_empty = Store::ALL.into_iter().all(|store| *self.found(store) == Found::Absent);
        if is_empty {
            return Verdict::Fresh;
        }
        for store in Store::ALL {
            match self.found(store) {
                Found::Absent => findings.push(Finding { store, problem: Problem::Missing }),
                Found::Damaged(reason) => findings.push(Finding { store, problem: Problem::Damaged(reason.clone()) }),
                Found::Unmarked | Found::Marked(..) => {}
            }
        }
        if findings.is_empty() { Verdict::Adopt } else { Verdict::Refused(findings) }
    }

    fn problem_of(&self, store: Store, expected: Installation, is_whole: bool) -> Option<Problem> {
        if store == Store::RegionKey {
            return self.problem_of_region_key(is_whole);
        }
        match self.found(store) {
            Found::Damaged(reason) => Some(Problem::Damaged(reason.clone())),
            Found::Absent => (is_whole || self.known(store, expected.id).is_some()).then_some(Problem::Missing),
            // Before the first start came to its end, a store may have been made and not yet marked.
            Found::Unmarked => is_whole.then_some(Problem::OtherInstallation { found: None, expected: expected.id }),
            Found::Marked(found, _) if found.id != expected.id => {
                Some(Problem::OtherInstallation { found: Some(found.id), expected: expected.id })
            }
            Found::Marked(found, _) if found.incarnation != expected.incarnation => {
                Some(Problem::OtherIncarnation { found: found.incarnation, expected: expected.incarnation })
            }
            Found::Marked(_, None) => None,
            Found::Marked(_, Some(found)) => self.problem_of_commit(store, expected, *found),
        }
    }

    fn problem_of_commit(&self, store: Store, expected: Installation, found: Commit) -> Option<Problem> {
        let about = |claim: &&Claim| claim.note.store == store && claim.note.installation == expected;
        let newest = self.claims.iter().filter(about).max_by_key(|claim| claim.note.commit.sequence)?;
        let known = newest.note.commit;
        if known.sequence > found.sequence {
            return Some(Problem::Behind { found, known, place: newest.place.clone() });
        }
        let same = self.claims.iter().filter(about).find(|claim| claim.note.commit.sequence == found.sequence)?;
        let is_other = same.note.commit.mark != found.mark;
        is_other.then(|| Problem::Diverged { sequence: found.sequence, place: same.place.clone() })
    }

    fn problem_of_region_key(&self, is_whole: bool) -> Option<Problem> {
        let expected = self.file().and_then(|file| file.region_key);
        match (self.found(Store::RegionKey), self.region_key, expected) {
            (Found::Damaged(reason), _, _) => Some(Problem::Damaged(reason.clone())),
            (_, None, Some(_)) => Some(Problem::Missing),
            (_, None, None) => is_whole.then_some(Problem::Missing),
            (_, Some(found), Some(expected)) if found != expected => {
                Some(Problem::Damaged("it is another key than the one this installation was made with".to_string()))
            }
            (_, Some(_), _) => None,
        }
    }

    fn warnings(&self, is_whole: bool) -> Vec<String> {
        let mut warnings = self.unreadable.clone();
        for FileCopy { place, file } in &self.copies {
            match file {
                Err(reason) => warnings.push(reason.clone()),
                Ok(None) if is_whole => warnings.push(format!("{place} is missing")),
                Ok(Some(file)) if Some(file) != self.file().as_ref() => {
                    warnings.push(format!("{place} says something older than the other copies"));
                }
                Ok(None | Some(_)) => {}
            }
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Installation = Installation { id: InstallationId([1; 16]), incarnation: 2 };
    const FIRST: Installation = Installation { incarnation: 1, ..HERE };
    const KEY: Fingerprint = [5; 8];

    #[test]
    fn a_whole_folder_starts_and_an_empty_one_begins() {
        assert_eq!(Survey::default().compare(), Verdict::Fresh);
        assert_eq!(whole().compare(), Verdict::Together { installation: HERE, warnings: Vec::new() });
    }

    #[test]
    fn every_store_that_is_away_or_damaged_is_named() {
        for store in Store::ALL {
            let mut survey = whole();
            survey.stores.insert(store, Found::Absent);
            survey.region_key = survey.region_key.filter(|_| store != Store::RegionKey);
            assert_eq!(problems(&survey), [(store, Problem::Missing)]);

            let mut survey = whole();
            survey.stores.insert(store, Found::Damaged("page 3".to_string()));
            assert_eq!(problems(&survey), [(store, Problem::Damaged("page 3".to_string()))]);
        }
    }

    #[test]
    fn less_than_anybody_knows_is_refused_and_more_is_not() {
        for (found, is_refused) in [(9, true), (10, false), (11, false)] {
            let mut survey = whole();
            survey.stores.insert(Store::Ledger, Found::Marked(HERE, Some(commit(found))));
            assert_eq!(!problems(&survey).is_empty(), is_refused, "{found}");
        }
        let mut survey = whole();
        survey.claims.retain(|claim| claim.note.store != Store::Ledger);
        survey.claims.push(claim(Store::Ledger, HERE, 10));
        survey.claims.push(claim(Store::Ledger, HERE, 12));
        survey.claims.push(claim(Store::Ledger, HERE, 11));
        let [(Store::Ledger, Problem::Behind { known, .. })] = &problems(&survey)[..] else { panic!() };
        assert_eq!(known.sequence, 12, "the newest claim counts");
    }

    #[test]
    fn only_what_has_all_that_somebody_knows_would_belong() {
        let survey = whole();
        let would = |found| survey.would_belong(Store::Ledger, found);
        let other = Installation { id: InstallationId([2; 16]), incarnation: 2 };

        assert!(would(Found::Marked(HERE, Some(commit(10)))));
        assert!(!would(Found::Marked(HERE, Some(commit(9)))));
        assert!(!would(Found::Marked(HERE, Some(Commit { mark: 99, ..commit(10) }))));
        assert!(!would(Found::Marked(other, Some(commit(50)))), "another installation's");
        assert!(!would(Found::Unmarked) && !would(Found::Absent) && !would(Found::Damaged(String::new())));
        let unwitnessed = Survey { claims: Vec::new(), ..whole() };
        assert!(!unwitnessed.would_belong(Store::Ledger, Found::Marked(HERE, Some(commit(10)))), "nobody knows");
    }

    #[test]
    fn a_copy_that_went_its_own_way_is_told_from_the_one_the_others_know() {
        let mut survey = whole();
        let other = Commit { mark: 99, ..commit(10) };
        survey.stores.insert(Store::Registry, Found::Marked(HERE, Some(other)));

        assert!(matches!(&problems(&survey)[..], [(Store::Registry, Problem::Diverged { sequence: 10, .. })]));
    }

    #[test]
    fn a_store_of_another_installation_or_incarnation_is_not_taken() {
        let other = Installation { id: InstallationId([2; 16]), incarnation: 2 };
        for (found, is_other_installation) in [(other, true), (Installation { incarnation: 1, ..HERE }, false)] {
            let mut survey = whole();
            survey.stores.insert(Store::Ledger, Found::Marked(found, Some(commit(50))));
            let problems = problems(&survey);
            assert_eq!(problems.len(), 1);
            assert_eq!(matches!(problems[0].1, Problem::OtherInstallation { .. }), is_other_installation);
        }
        let mut survey = whole();
        survey.stores.insert(Store::Ledger, Found::Unmarked);
        assert!(matches!(problems(&survey)[0].1, Problem::OtherInstallation { found: None, .. }));
    }

    #[test]
    fn another_region_key_is_not_taken_for_the_one_that_was() {
        let survey = Survey { region_key: Some([6; 8]), ..whole() };

        assert!(matches!(&problems(&survey)[..], [(Store::RegionKey, Problem::Damaged(_))]));
    }

    #[test]
    fn a_release_without_ids_is_adopted_when_it_is_whole_and_refused_when_not() {
        let mut survey = Survey { region_key: Some(KEY), ..Survey::default() };
        Store::ALL.into_iter().for_each(|store| drop(survey.stores.insert(store, Found::Unmarked)));
        assert_eq!(survey.compare(), Verdict::Adopt);

        survey.stores.insert(Store::Ledger, Found::Absent);
        assert_eq!(problems(&survey), [(Store::Ledger, Problem::Missing)]);
    }

    #[test]
    fn a_first_start_that_was_interrupted_anywhere_goes_on() {
        let begun = InstallationFile { installation: FIRST, is_whole: false, region_key: None, raised_by: None };
        for made in 0..=Store::ALL.len() {
            let mut survey = Survey::default();
            survey.copies.push(FileCopy { place: "a".to_string(), file: Ok(Some(begun.clone())) });
            for store in &Store::ALL[..made] {
                let marked = Found::Marked(FIRST, store.is_witnessed().then(|| commit(0)));
                survey.stores.insert(*store, marked);
            }
            assert!(matches!(survey.compare(), Verdict::Together { .. }), "{made}");
        }
    }

    #[test]
    fn a_raise_that_was_interrupted_anywhere_goes_on_and_no_start_takes_it_for_whole() {
        let raised = HERE.raised();
        for count in 0..=2 {
            let mut survey = whole();
            let raised_by = Some(Raise::Restore);
            let begun = InstallationFile { installation: raised, is_whole: false, region_key: Some(KEY), raised_by };
            survey.copies[0].file = Ok(Some(begun));
            for store in &[Store::Registry, Store::Ledger][..count] {
                survey.stores.insert(*store, Found::Marked(raised, Some(commit(11))));
            }
            let unfinished = Verdict::Unfinished { installation: raised, raise: Raise::Restore, findings: Vec::new() };
            assert_eq!(survey.compare(), unfinished, "{count}");
        }
        let mut survey = whole();
        let raised_by = Some(Raise::Restore);
        let begun = InstallationFile { installation: raised, is_whole: false, region_key: Some(KEY), raised_by };
        survey.copies[0].file = Ok(Some(begun));
        survey.stores.insert(Store::Ledger, Found::Marked(HERE, Some(commit(9))));
        let Verdict::Unfinished { findings, .. } = survey.compare() else { panic!("{:?}", survey.compare()) };
        assert!(matches!(&findings[..], [Finding { store: Store::Ledger, problem: Problem::Behind { .. } }]));
    }

    #[test]
    fn one_lost_copy_of_the_file_is_said_and_the_stores_still_know_each_other() {
        let mut survey = whole();
        survey.copies[0].file = Ok(None);
        let Verdict::Together { installation: HERE, warnings } = survey.compare() else { panic!() };
        assert_eq!(warnings, ["a is missing"]);

        survey.copies.clear();
        survey.region_key = Some(KEY);
        assert!(matches!(survey.compare(), Verdict::Together { installation: HERE, .. }));
        survey.stores.insert(Store::Registry, Found::Absent);
        assert_eq!(problems(&survey), [(Store::Registry, Problem::Missing)], "no copy of the file is needed to see it");
    }

    #[test]
    fn numbers_are_the_highest_that_any_claim_knows() {
        let mut survey = whole();
        survey.claims[0].note.numbers = Numbers { tenant: 4, delivery: 2, ..Numbers::default() };
        survey.claims[1].note.numbers = Numbers { tenant: 1, delivery: 9, ..Numbers::default() };

        assert_eq!(survey.numbers(), Numbers { tenant: 4, delivery: 9, ..Numbers::default() });
    }

    fn whole() -> Survey {
        let file = InstallationFile { installation: HERE, is_whole: true, region_key: Some(KEY), raised_by: None };
        let copy = |place: &str| FileCopy { place: place.to_string(), file: Ok(Some(file.clone())) };
        let marked = |store: Store| {
            let sequence = matches!(store, Store::Registry | Store::Ledger).then(|| commit(10));
            (store, Found::Marked(HERE, sequence))
        };
        Survey {
            stores: Store::ALL.into_iter().map(marked).collect(),
            claims: vec![claim(Store::Registry, HERE, 10), claim(Store::Ledger, HERE, 10)],
            copies: vec![copy("a"), copy("b")],
            region_key: Some(KEY),
            unreadable: Vec::new(),
        }
    }

    fn commit(sequence: u64) -> Commit {
        Commit { sequence, mark: sequence * 3 }
    }

    fn claim(store: Store, installation: Installation, sequence: u64) -> Claim {
        let note = Note { installation, store, commit: commit(sequence), numbers: Numbers::default() };
        Claim { place: format!("the note of {}", store.name()), note }
    }

    fn problems(survey: &Survey) -> Vec<(Store, Problem)> {
        match survey.compare() {
            Verdict::Refused(findings) => {
                findings.into_iter().map(|finding| (finding.store, finding.problem)).collect()
            }
            Verdict::Fresh | Verdict::Adopt | Verdict::Together { .. } | Verdict::Unfinished { .. } => Vec::new(),
        }
    }
}
