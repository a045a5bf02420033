//! Which probes are asked together, moment by moment.

use std::sync::Arc;

use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

use super::{Asked, Batch, Groups, MISSES_MAX};
use crate::database::home::probe::Probe;

fn probe(number: u64) -> Arc<Probe> {
    // Some have two scalars, and each scalar names its probe.
    let scalars = (0..1 + number % 2).map(|n| format!("<{number}.{n}>"));
    Arc::new(Probe {
        number,
        prober: format!("w{number}"),
        scalars: scalars.collect(),
    })
}

/// Gathers probes that are asked at the same moment.
fn gather(groups: &mut Groups, numbers: impl IntoIterator<Item = u64>) -> Vec<Batch<()>> {
    let asked = numbers.into_iter().map(|number| Asked {
        probe: probe(number),
        waiter: (),
    });
    groups.gather(asked.collect())
}

fn texts(batches: &[Batch<()>]) -> Vec<String> {
    batches.iter().map(|batch| batch.sql.to_string()).collect()
}

#[test]
fn probes_that_come_together_share_one_stable_statement() {
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
fn a_group_survives_missing_members_for_a_while() {
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
fn a_probe_whose_group_has_failed_is_asked_alone_until_it_is_answered() {
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
    fn each_probe_is_in_one_statement_at_its_stated_place(
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
                let names = batch.sql.matches('w').count() - 1; // without that of "bgworker"
                prop_assert!(names <= max);
                prop_assert_eq!(batch.is_of_one, names == 1);
                for (place, asked) in &batch.asked {
                    let own = &asked.probe.scalars;
                    prop_assert_eq!(&scalars[*place..*place + own.len()], &own[..]);
                    met.push(asked.probe.number);
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
            // No live group has a statement that was dissolved.
            let dissolved = groups.take_dissolved();
            let live: Vec<_> = groups.groups.values().map(|group| &group.sql).collect();
            prop_assert!(live.iter().all(|sql| !dissolved.iter().any(|gone| Arc::ptr_eq(gone, sql))));
            prop_assert_eq!(groups.group_of.len(), groups.groups.values().map(|group| group.probes.len()).sum::<usize>());
        }
    }
}
