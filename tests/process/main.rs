//! What is left of a tree when its processes are killed: the tests that need a process of their own.
//!
//! Each case is this executable again, in a process group and with a runtime directory of its own, so that it can ignore
//! signals, be the parent of what it kills, and be killed itself. The runner adopts whatever a case leaves behind, so that
//! nothing can hide from it: after each case there must be no process (zombies included) and no file of any tree.
//!
//! The command line is that of libtest, as far as it makes sense here. `OFFSHOOT_LONG=1` asks for the long forms,
//! `OFFSHOOT_SEED=N` repeats the random ones. Names in comments like F13 are rows of the project's list of faults.

mod fds;
mod flood;
mod forkserver;
mod given_up;
mod harness;
mod host_program;
mod images;
mod kills;
mod oracle;
mod program;
mod refused;
mod rights;
mod root_death;
mod signals;
mod spawn_faults;
mod storm;
mod strangers;
mod surroundings;
mod traced;

use harness::{Case, case};
use std::process::ExitCode;

/// All cases, by the name that a filter is matched with.
const CASES: &[Case] = &[
    case(
        "fds::f42_a_process_has_only_its_own_descriptors",
        fds::only_its_own,
    ),
    case(
        "fds::a_thousand_threads_need_no_descriptor",
        fds::a_thousand_threads,
    ),
    case(
        "forkserver::f13_killed_while_idle",
        forkserver::killed_while_idle,
    ),
    case("forkserver::f15_stopped", forkserver::stopped),
    case(
        "flood::of_requests_and_the_root_is_killed",
        flood::the_root_is_killed,
    ),
    case(
        "flood::of_requests_and_others_are_served",
        flood::others_are_served,
    ),
    case(
        "forkserver::f15_stopped_for_a_while",
        forkserver::stopped_for_a_while,
    ),
    case(
        "forkserver::f15_a_crash_while_it_is_stopped",
        forkserver::a_crash_while_it_is_stopped,
    ),
    case(
        "forkserver::f14_killed_during_a_spawn",
        forkserver::killed_during_a_spawn,
    ),
    case(
        "given_up::nothing_is_removed_for_what_has_given_up_its_rights",
        given_up::nothing_is_removed_for_it,
    ),
    case(
        "host_program::f30_ignores_sigchld",
        host_program::ignores_sigchld,
    ),
    case(
        "host_program::f30_handles_sigchld",
        host_program::handles_sigchld,
    ),
    case(
        "host_program::f30_waits_for_any_child",
        host_program::waits_for_any_child,
    ),
    case(
        "host_program::keeps_its_own_children",
        host_program::keeps_its_own_children,
    ),
    case("host_program::is_an_example", host_program::is_an_example),
    case(
        "host_program::foreign_main_twice_and_at_once",
        host_program::twice_and_at_once,
    ),
    case(
        "images::f67_started_by_the_loader",
        images::started_by_the_loader,
    ),
    case(
        "images::f67_an_executable_that_may_not_be_read",
        images::may_not_be_read,
    ),
    case(
        "kills::any_process_at_any_moment",
        kills::any_process_at_any_moment,
    ),
    case(
        "refused::calls_of_the_file_system_are_done_without_or_named",
        refused::calls_of_the_file_system,
    ),
    case("rights::what_is_given_up_is_given_up", rights::given_up),
    case(
        "rights::what_is_given_up_is_given_up_below",
        rights::given_up_below,
    ),
    case("rights::a_secure_program_runs_once", rights::secure_exec),
    case("root_death::f53_killed", root_death::killed),
    case(
        "root_death::f53_killed_with_a_child_that_wants_to_stay",
        root_death::killed_with_a_stayer,
    ),
    case(
        "root_death::killed_with_the_forkserver",
        root_death::killed_with_the_forkserver,
    ),
    case(
        "root_death::killed_with_the_forkserver_and_turncoats",
        root_death::killed_with_the_forkserver_and_turncoats,
    ),
    case(
        "root_death::killed_with_the_forkserver_stopped",
        root_death::killed_with_the_forkserver_stopped,
    ),
    case(
        "root_death::f53_killed_at_the_hand_over",
        root_death::killed_at_the_hand_over,
    ),
    case("root_death::segfault", root_death::segfault),
    case(
        "traced::a_leaf_whose_tracer_does_not_wait",
        traced::by_one_that_does_not_wait,
    ),
    case(
        "root_death::f19_a_thread_that_panics_twice",
        root_death::bombs,
    ),
    case(
        "root_death::f21_a_thread_that_overflows",
        root_death::overflow,
    ),
    case(
        "root_death::f55_the_executable_is_replaced",
        root_death::replaced,
    ),
    case(
        "root_death::f29_daemons_go_with_the_tree",
        root_death::daemons_go_with_the_tree,
    ),
    case(
        "signals::interrupt_cancels_the_tree",
        signals::interrupt_cancels,
    ),
    case(
        "signals::f33_interrupt_of_the_whole_group",
        signals::interrupt_of_the_group,
    ),
    case(
        "signals::second_interrupt_is_at_once",
        signals::second_interrupt,
    ),
    case(
        "signals::terminate_cancels_the_tree",
        signals::terminate_cancels,
    ),
    case(
        "signals::run_installs_no_handler",
        signals::run_installs_no_handler,
    ),
    case(
        "spawn_faults::killed_before_it_serves",
        spawn_faults::killed_before,
    ),
    case(
        "spawn_faults::f06_stopped_before_it_serves",
        spawn_faults::stopped_before,
    ),
    case(
        "spawn_faults::hangs_before_it_serves",
        spawn_faults::hangs_before,
    ),
    case(
        "spawn_faults::exits_before_it_serves",
        spawn_faults::exits_before,
    ),
    case(
        "spawn_faults::panics_before_it_serves",
        spawn_faults::panics_before,
    ),
    case(
        "spawn_faults::killed_when_it_serves",
        spawn_faults::killed_after,
    ),
    case(
        "surroundings::a_standard_error_that_is_broken_costs_nobody",
        surroundings::broken_stderr,
    ),
    case(
        "surroundings::what_is_ignored_stays_ignored",
        surroundings::stays_ignored,
    ),
    case(
        "surroundings::what_is_spawned_has_what_its_spawner_has",
        surroundings::what_is_spawned_has_what_its_spawner_has,
    ),
    case(
        "surroundings::limits_are_errors",
        surroundings::limits_are_errors,
    ),
    case(
        "surroundings::standard_numbers_are_not_taken",
        surroundings::standard_numbers_are_not_taken,
    ),
    case(
        "surroundings::a_terminal_stops_no_process",
        surroundings::a_terminal_stops_no_process,
    ),
    case(
        "surroundings::what_c_has_buffered_is_written",
        surroundings::what_c_has_buffered_is_written,
    ),
    case("storm::a_tree_of_fourteen", storm::a_tree_of_fourteen),
    case(
        "strangers::end_with_their_isolate",
        strangers::end_with_their_isolate,
    ),
    case(
        "strangers::are_reaped_when_they_end",
        strangers::are_reaped_when_they_end,
    ),
    case(
        "strangers::end_without_their_first_thread",
        strangers::end_without_their_first_thread,
    ),
    case(
        "strangers::end_with_their_forkserver",
        strangers::end_with_their_forkserver,
    ),
    case(
        "strangers::a_tree_in_a_tree_cleans_up",
        strangers::a_tree_in_a_tree_cleans_up,
    ),
];

fn main() -> ExitCode {
    // A tree to be killed, started by a case.
    if let Some(code) = program::main() {
        return code;
    }
    harness::main(CASES)
}
