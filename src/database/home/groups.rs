//! Questions that are asked together: whose come at the same moment travel as one statement.
//!
//! To look whether there is anything to do costs a server little; to be woken for it, to begin and to end a
//! transaction costs much more. Decides which questions make a statement, and keeps that as it is for as long as they
//! come together, since it is prepared. Pure: sends nothing, and knows nobody who waits.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::question::Question;

/// How many questions one statement has at most: so that it takes tenths of a millisecond where tables are small, and
/// locks no more tables than it must.
pub(super) const QUESTIONS_MAX: usize = 32;

/// So many times in a row most of a group may be missing; the next time it is a group no more.
const MISSES_MAX: u8 = 8;

/// A question, and who waits for the answer.
pub(super) struct Asked<W> {
    pub(super) question: Arc<Question>,
    pub(super) waiter: W,
}

/// What is to be sent as one statement: one row of one array of `tid`.
pub(super) struct Batch<W> {
    pub(super) sql: Arc<str>,
    group: u64,
    /// Nobody else's question can be what makes it fail.
    pub(super) is_of_one: bool,
    /// Each with the place of its first scalar in the array.
    pub(super) asked: Vec<(usize, Asked<W>)>,
}

/// Which questions are asked together.
pub(super) struct Groups {
    max: usize,
    groups: HashMap<u64, Group>,
    group_of: HashMap<u64, u64>,
    /// Questions of groups that have failed. Each is asked alone until it has been answered.
    suspects: HashSet<u64>,
    /// The statements of groups that are no more.
    dissolved: Vec<Arc<str>>,
    next: u64,
}

struct Group {
    sql: Arc<str>,
    questions: Vec<Arc<Question>>,
    misses: u8,
}

// === impl Groups ===

impl Groups {
    /// Of so many questions at most.
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            groups: HashMap::new(),
            group_of: HashMap::new(),
            suspects: HashSet::new(),
            dissolved: Vec::new(),
            next: 0,
        }
    }

    /// Makes statements of questions that were asked at one moment.
    pub(super) fn gather<W>(&mut self, asked: Vec<Asked<W>>) -> Vec<Batch<W>> {
        self.regroup(&asked);
        let mut batches: Vec<Batch<W>> = Vec::new();
        for asked in asked {
            let number = asked.question.number;
            let group = self.group_of[&number];
            let Group { sql, questions, .. } = &self.groups[&group];
            let before = questions.iter().take_while(|one| one.number != number);
            let place = before.map(|one| one.scalars.len()).sum();
            match batches.iter_mut().find(|batch| batch.group == group) {
                Some(batch) => batch.asked.push((place, asked)),
                None => batches.push(Batch {
                    sql: Arc::clone(sql),
                    group,
                    is_of_one: questions.len() == 1,
                    asked: vec![(place, asked)],
                }),
            }
        }
        batches
    }

    /// Sees to it that each of these has a group, and that groups which come together become fewer if they can.
    fn regroup<W>(&mut self, asked: &[Asked<W>]) {
        let present: HashMap<_, _> = asked
            .iter()
            .map(|asked| (asked.question.number, &asked.question))
            .collect();
        let groups: HashSet<_> = present
            .keys()
            .filter_map(|question| self.group_of.get(question).copied())
            .collect();
        let growing: Vec<_> = groups
            .into_iter()
            .filter(|group| self.may_grow(*group, &present))
            .collect();
        let is_loose = |groups: &Self, question| !groups.group_of.contains_key(question);
        let loose = present.keys().filter(|one| is_loose(self, one));
        let loose = loose.filter(|one| !self.suspects.contains(one)).count();
        let grown = growing
            .iter()
            .map(|group| self.groups[group].questions.len());
        let all = loose + grown.sum::<usize>();
        if all.div_ceil(self.max) < growing.len() + loose.div_ceil(self.max) {
            for group in growing {
                self.dissolve(group);
            }
        }
        let loose = present.iter().filter(|(number, _)| is_loose(self, number));
        let mut loose: Vec<_> = loose.map(|(_, question)| Arc::clone(question)).collect();
        loose.sort_by_key(|question| question.number);
        let is_suspect = |question: &Arc<Question>| self.suspects.contains(&question.number);
        let (suspects, others): (Vec<_>, Vec<_>) = loose.into_iter().partition(is_suspect);
        for question in suspects {
            self.group(vec![question]);
        }
        for questions in others.chunks(self.max) {
            self.group(questions.to_vec());
        }
    }

    /// Whether a group, some of which are present, may be put together with others: if all of it is. One whose
    /// questions do not come together any more is a group no more.
    fn may_grow(&mut self, number: u64, present: &HashMap<u64, &Arc<Question>>) -> bool {
        let Some(group) = self.groups.get_mut(&number) else {
            return false;
        };
        let questions = &group.questions;
        let here = questions
            .iter()
            .filter(|one| present.contains_key(&one.number));
        let here = here.count();
        if 2 * here >= questions.len() {
            group.misses = 0;
        } else if group.misses == MISSES_MAX {
            self.dissolve(number);
            return false;
        } else {
            group.misses += 1;
        }
        let is_suspect = |one: &Arc<Question>| self.suspects.contains(&one.number);
        let is_whole = here == questions.len();
        is_whole && here < self.max && !questions.iter().any(is_suspect)
    }

    /// Whether a batch may be sent again as it is.
    pub(super) fn has<W>(&self, batch: &Batch<W>) -> bool {
        self.groups.contains_key(&batch.group)
    }

    /// A batch was answered with values: its questions are as good as any.
    pub(super) fn succeeded<W>(&mut self, batch: &Batch<W>) {
        if !self.suspects.is_empty() {
            for (_, asked) in &batch.asked {
                self.suspects.remove(&asked.question.number);
            }
        }
    }

    /// A batch of several has failed, and whose question it was is to be found out: until it has been answered,
    /// each of them is asked alone.
    pub(super) fn failed<W>(&mut self, batch: Batch<W>) -> Vec<Asked<W>> {
        if let Some(group) = self.groups.get(&batch.group) {
            let numbers = group.questions.iter().map(|question| question.number);
            self.suspects.extend(numbers);
        }
        self.dissolve(batch.group);
        let asked: Vec<_> = batch.asked.into_iter().map(|(_, asked)| asked).collect();
        // It may have been a group no more when it failed, and they are in others by now.
        for asked in &asked {
            let number = asked.question.number;
            self.suspects.insert(number);
            if let Some(group) = self.group_of.get(&number) {
                self.dissolve(*group);
            }
        }
        asked
    }

    /// A batch took too long: from now on groups are half as large.
    pub(super) fn shrink(&mut self) {
        self.max = (self.max / 2).max(1);
    }

    /// Nobody asks this any more.
    pub(super) fn forget(&mut self, question: u64) {
        self.suspects.remove(&question);
        if let Some(group) = self.group_of.get(&question) {
            self.dissolve(*group);
        }
    }

    /// The statements that nobody will send any more.
    pub(super) fn take_dissolved(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.dissolved)
    }

    fn group(&mut self, questions: Vec<Arc<Question>>) {
        self.next += 1;
        for question in &questions {
            self.group_of.insert(question.number, self.next);
        }
        let group = Group {
            sql: sql(&questions).into(),
            questions,
            misses: 0,
        };
        self.groups.insert(self.next, group);
    }

    fn dissolve(&mut self, number: u64) {
        if let Some(group) = self.groups.remove(&number) {
            for question in &group.questions {
                self.group_of.remove(&question.number);
            }
            self.dissolved.push(group.sql);
        }
    }
}

/// One statement for all of them, which says first whose it is.
fn sql(questions: &[Arc<Question>]) -> String {
    let askers: Vec<_> = questions
        .iter()
        .map(|question| question.asker.as_str())
        .collect();
    let scalars = questions.iter().flat_map(|question| &question.scalars);
    let scalars: Vec<_> = scalars.map(String::as_str).collect();
    format!(
        "/* bgworker: {} */ SELECT ARRAY[{}]",
        askers.join(", "),
        scalars.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn question(number: u64) -> Arc<Question> {
        // Some have two scalars, and all say whose they are.
        let scalars = (0..1 + number % 2).map(|n| format!("<{number}.{n}>"));
        Arc::new(Question {
            number,
            asker: format!("w{number}"),
            scalars: scalars.collect(),
        })
    }

    /// These ask at one moment.
    fn gather(groups: &mut Groups, numbers: impl IntoIterator<Item = u64>) -> Vec<Batch<()>> {
        let asked = numbers.into_iter().map(|number| Asked {
            question: question(number),
            waiter: (),
        });
        groups.gather(asked.collect())
    }

    fn texts(batches: &[Batch<()>]) -> Vec<String> {
        batches.iter().map(|batch| batch.sql.to_string()).collect()
    }

    #[test]
    fn who_comes_together_is_asked_in_one_statement_that_stays_as_it_is() {
        let mut groups = Groups::new(32);
        let first = texts(&gather(&mut groups, [2, 1]));
        assert_eq!(
            first,
            ["/* bgworker: w1, w2 */ SELECT ARRAY[<1.0>, <1.1>, <2.0>]"]
        );
        for _ in 0..10 {
            assert_eq!(texts(&gather(&mut groups, [1, 2])), first);
        }
        assert!(groups.take_dissolved().is_empty());
    }

    #[test]
    fn small_groups_that_come_together_become_one() {
        let mut groups = Groups::new(32);
        for number in 0..10 {
            gather(&mut groups, [number]);
        }
        assert_eq!(gather(&mut groups, 0..10).len(), 1);
        assert_eq!(groups.take_dissolved().len(), 10);
    }

    #[test]
    fn one_that_does_not_come_is_borne_with_for_a_while() {
        let mut groups = Groups::new(32);
        let together = texts(&gather(&mut groups, 0..5));
        for _ in 0..MISSES_MAX {
            assert_eq!(texts(&gather(&mut groups, [3])), together);
        }
        let alone = texts(&gather(&mut groups, [3]));
        assert_eq!(alone, ["/* bgworker: w3 */ SELECT ARRAY[<3.0>, <3.1>]"]);
        assert_eq!(texts(&gather(&mut groups, [3])), alone);
    }

    #[test]
    fn a_question_whose_group_has_failed_is_asked_alone_until_it_is_answered() {
        let mut groups = Groups::new(32);
        let batch = gather(&mut groups, 0..3).remove(0);
        let again = groups.failed(batch);
        let batches = groups.gather(again);
        assert_eq!(batches.len(), 3);
        // Two of them are answered, and go together again; the third is still asked alone.
        for batch in &batches[..2] {
            assert!(batch.is_of_one);
            groups.succeeded(batch);
        }
        let batches = gather(&mut groups, 0..3);
        let many: Vec<_> = batches.iter().map(|batch| batch.asked.len()).collect();
        assert_eq!(many, [2, 1]);
        groups.succeeded(&batches[1]);
        assert_eq!(gather(&mut groups, 0..3).len(), 1);
    }

    #[test]
    fn a_statement_that_fails_when_its_group_is_no_more_still_makes_suspects() {
        let mut groups = Groups::new(32);
        let batch = gather(&mut groups, 0..3).remove(0);
        groups.forget(1);
        assert_eq!(gather(&mut groups, [0, 2]).len(), 1, "another group");
        let again = groups.failed(batch);
        assert_eq!(groups.gather(again).len(), 3, "each alone");
    }

    #[test]
    fn groups_that_meet_by_chance_are_not_torn_apart() {
        let mut groups = Groups::new(32);
        gather(&mut groups, [0, 1]);
        gather(&mut groups, [2]);
        groups.take_dissolved();
        for _ in 0..10 {
            assert_eq!(gather(&mut groups, [0, 2]).len(), 2);
            gather(&mut groups, [1]);
        }
        assert!(groups.take_dissolved().is_empty());
    }

    #[test]
    fn groups_that_take_too_long_become_smaller() {
        let mut groups = Groups::new(4);
        let batch = gather(&mut groups, 0..4).remove(0);
        groups.shrink();
        groups.failed(batch);
        for _ in 0..2 {
            for batch in gather(&mut groups, 0..4) {
                groups.succeeded(&batch);
            }
        }
        assert_eq!(gather(&mut groups, 0..4).len(), 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn whoever_asks_is_in_one_statement_at_the_place_that_is_said(
            max in 1..6_usize,
            moments in prop::collection::vec(
                (prop::collection::vec(0..12_u64, 1..12), any::<bool>(), 0..12_u64), 1..30
            ),
        ) {
            let mut groups = Groups::new(max);
            for (numbers, fails, forgotten) in moments {
                let batches = gather(&mut groups, numbers.clone());
                let mut met = Vec::new();
                for batch in &batches {
                    let (_, array) = batch.sql.split_once("ARRAY[").unwrap();
                    let scalars: Vec<_> = array.trim_end_matches(']').split(", ").collect();
                    let names = batch.sql.matches('w').count() - 1; // and that of bgworker
                    prop_assert!(names <= max);
                    prop_assert_eq!(batch.is_of_one, names == 1);
                    for (place, asked) in &batch.asked {
                        let own = &asked.question.scalars;
                        prop_assert_eq!(&scalars[*place..*place + own.len()], &own[..]);
                        met.push(asked.question.number);
                    }
                }
                met.sort_unstable();
                let mut numbers = numbers;
                numbers.sort_unstable();
                prop_assert_eq!(met, numbers, "each exactly once");
                for batch in batches {
                    if fails && !batch.is_of_one {
                        let again = groups.failed(batch);
                        prop_assert!(groups.gather(again).iter().all(|batch| batch.is_of_one));
                    } else {
                        groups.succeeded(&batch);
                    }
                }
                groups.forget(forgotten);
                // What is prepared is what is still sent.
                let dissolved = groups.take_dissolved();
                let live: Vec<_> = groups.groups.values().map(|group| &group.sql).collect();
                prop_assert!(live.iter().all(|sql| !dissolved.iter().any(|gone| Arc::ptr_eq(gone, sql))));
                prop_assert_eq!(groups.group_of.len(), groups.groups.values().map(|group| group.questions.len()).sum::<usize>());
            }
        }
    }
}
