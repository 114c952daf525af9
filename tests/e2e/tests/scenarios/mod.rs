//! The scenarios, by subject.

mod actors;
mod blocks;
mod cancelling;
mod detaching;
mod disk;
mod draining;
pub mod driver;
mod dying;
mod expiring;
mod explaining;
mod files;
mod forging;
mod grouping;
mod inheriting;
mod inventory;
pub mod isolation;
mod joining;
mod leaks;
mod lending;
mod limits;
mod losing;
mod memory;
mod objects;
mod pinning;
mod placing;
mod pressure;
mod room;
mod salvaging;
mod scale;
mod several;
mod sharing;
mod stopping;
mod store;
mod streaming;
mod tables;
mod tasks;
mod telling;
mod transfer;
mod ui;

use mobula_e2e::{Case, Mode, Solo};

macro_rules! case {
    ($module:ident :: $function:ident) => {
        Case::new(concat!(stringify!($module), "::", stringify!($function)), |env| {
            Box::pin($module::$function(env))
        })
    };
}

macro_rules! solo {
    ($module:ident :: $function:ident) => {
        Solo { name: concat!(stringify!($module), "::", stringify!($function)), run: $module::$function }
    };
}

/// With processes in any case.
const PROCESSES: &[Mode] = &[Mode::Local, Mode::Remote];
/// Devices that are stated, so that they can be handed out where there are none.
const DEVICES: &[(&str, f64)] = &[("gpu", 4.0), ("tpu", 8.0)];
/// With a rig whose nodes differ.
const RIG: &[Mode] = &[Mode::Remote];
/// With a rig, and both ways into it.
const STOPPABLE: &[Mode] = &[Mode::Remote, Mode::Socket];
/// Every way in.
const EVERYWHERE: &[Mode] = &[Mode::Embedded, Mode::Local, Mode::Remote, Mode::Socket];

/// Scenarios that run in several modes.
pub fn cases() -> Vec<Case> {
    vec![
        case!(tasks::sync_and_async).modes(EVERYWHERE).fresh(),
        case!(tasks::async_code_is_in_a_tokio_task),
        case!(tasks::refs_are_arguments),
        case!(tasks::many_share_an_argument_that_fails).modes(EVERYWHERE),
        case!(tasks::a_graph_runs_without_its_driver),
        case!(tasks::refs_travel_inside_values),
        case!(tasks::large_arguments_and_results),
        case!(tasks::nested_on_one_cpu).cpus(1.0),
        case!(tasks::who_waits_and_computes_keeps_its_cpu).modes(&[Mode::Embedded]).cpus(1.0),
        case!(tasks::who_gave_up_waiting_keeps_its_cpu).modes(&[Mode::Embedded]).cpus(1.0),
        case!(tasks::a_task_knows_itself),
        case!(tasks::a_process_of_its_own),
        case!(scale::many_refs_and_results),
        case!(scale::many_tasks_are_queued),
        case!(scale::an_object_beyond_four_gibibytes).store_bytes(6 << 30),
        case!(scale::many_tasks_sleep_at_once),
        case!(scale::many_actors_wait_for_calls),
        case!(scale::many_layers_of_many_dependencies),
        case!(scale::trees_of_tasks),
        case!(several::each_has_a_ref),
        case!(several::methods_have_several_too),
        case!(several::three_thousand),
        case!(several::another_number_is_an_error),
        case!(several::all_fail_together),
        case!(several::some_can_be_dropped),
        case!(several::a_dead_host_is_no_loss),
        case!(several::lost_values_are_made_again).modes(RIG).fresh(),
        case!(streaming::items_come_in_order).modes(EVERYWHERE),
        case!(streaming::plain_threads_iterate).cpus(1.0),
        case!(streaming::an_endless_one_stays_within_its_bound),
        case!(streaming::a_waiting_producer_gives_its_cpu_back).cpus(1.0),
        case!(streaming::items_cross_nodes),
        case!(streaming::an_error_comes_after_the_items_before_it),
        case!(streaming::a_dropped_one_leaves_nothing),
        case!(streaming::a_dead_host_is_no_loss),
        case!(streaming::a_dead_node_is_no_loss).modes(RIG).fresh(),
        case!(streaming::a_full_window_is_made_again).modes(RIG).fresh(),
        case!(streaming::refs_travel_inside_items),
        case!(streaming::methods_stream),
        case!(streaming::a_dead_reader_ends_it),
        case!(objects::put_and_get),
        case!(objects::small_values_are_shared),
        case!(objects::many_small_values_come_and_go),
        case!(objects::views_look_in_place),
        case!(objects::waiting_for_some),
        case!(objects::a_timeout_is_an_answer),
        case!(objects::tensors_of_every_kind),
        case!(objects::tensors_are_built_in_place),
        case!(objects::what_a_task_built_is_read_where_it_lies),
        case!(objects::parts_of_tensors),
        case!(objects::tensors_in_files),
        case!(objects::a_view_keeps_its_object),
        case!(objects::a_view_in_an_actor_keeps_its_object),
        case!(objects::tensors_cross_nodes),
        case!(objects::a_freed_object_says_so),
        case!(objects::blocking_inside_async_is_refused),
        case!(store::big_objects_are_freed_with_their_last_ref),
        case!(store::borrowed_objects_outlive_the_first_ref),
        case!(store::a_full_store_says_so).store_bytes(32 << 20),
        case!(store::too_large_for_the_store).store_bytes(32 << 20),
        case!(store::a_lost_object_is_made_again).modes(RIG).fresh(),
        case!(store::one_that_is_lost_before_others_are_there_is_waited_for).modes(RIG).fresh(),
        case!(pressure::a_driver_puts_four_stores_full).store_bytes(32 << 20),
        case!(pressure::results_outgrow_the_store).store_bytes(32 << 20),
        case!(pressure::a_host_killed_meanwhile_leaves_nothing).modes(RIG).store_bytes(32 << 20),
        case!(pressure::a_stopped_process_keeps_nobody_else_from_room).modes(RIG).store_bytes(32 << 20),
        case!(pressure::arguments_and_results_share_the_store).store_bytes(32 << 20),
        case!(pressure::calls_that_wait_leave_room_for_results).store_bytes(32 << 20),
        case!(pressure::processes_share_the_store).modes(RIG).store_bytes(32 << 20),
        case!(pressure::parents_let_their_children_in).store_bytes(32 << 20),
        case!(pressure::a_shuffle_outgrows_the_store).store_bytes(32 << 20),
        case!(pressure::a_shuffle_outgrows_two_stores).modes(RIG).store_bytes(32 << 20),
        case!(room::many_large_calls_share_the_store).modes(RIG).store_bytes(64 << 20).cpus(4.0),
        case!(room::a_result_waits_for_the_end_of_other_calls)
            .modes(RIG)
            .store_bytes(64 << 20)
            .cpus(4.0)
            .fresh(),
        case!(room::what_fits_does_not_wait_behind_what_waits_for_its_end)
            .modes(RIG)
            .store_bytes(64 << 20)
            .cpus(4.0)
            .fresh(),
        case!(room::a_result_waits_for_the_next_call_of_its_slot)
            .modes(RIG)
            .store_bytes(64 << 20)
            .cpus(1.0)
            .fresh(),
        case!(disk::a_spoiled_disk_is_found_out).modes(RIG).store_bytes(32 << 20).fresh(),
        case!(disk::missing_files_are_found_out).modes(RIG).store_bytes(32 << 20).fresh(),
        case!(disk::what_others_have_of_a_spoiled_disk_is_not_lost).modes(RIG).store_bytes(32 << 20).fresh(),
        case!(disk::files_that_were_cut_are_found_out).modes(RIG).store_bytes(32 << 20).fresh(),
        case!(tables::batches_are_read_where_they_lie).modes(EVERYWHERE),
        case!(pressure::an_object_store_takes_the_rest).store_bytes(32 << 20).spill_to("memory:///"),
        case!(disk::what_is_made_again_takes_nothing_along).modes(RIG).store_bytes(32 << 20).fresh(),
        case!(disk::a_full_disk_says_so).modes(RIG).store_bytes(32 << 20).fresh(),
        case!(actors::calls_keep_their_order),
        case!(actors::shared_calls_overlap),
        case!(actors::constructors_may_wait_and_fail),
        case!(actors::handles_travel),
        case!(actors::nested_actors).cpus(1.0),
        case!(actors::names_are_found_and_freed),
        case!(actors::get_or_create_makes_one),
        case!(actors::kill_ends_it_for_good),
        case!(actors::it_ends_with_its_last_handle),
        case!(limits::a_flood_of_tasks_is_slowed_down),
        case!(limits::long_messages_arrive),
        case!(limits::groups_bound_what_runs_at_once),
        case!(limits::groups_bound_what_runs_on_threads),
        case!(limits::mistakes_in_limits_are_named),
        case!(limits::unordered_calls_overtake),
        case!(limits::a_full_inbox_refuses_and_gives_calls_back),
        case!(limits::a_flood_waits),
        case!(limits::a_flood_from_several_hosts_waits),
        case!(limits::a_full_budget_holds_submitters_back).budget(limits::BUDGET),
        // Tasks run in the process whose calls are bounded.
        case!(limits::who_awaits_room_in_the_budget_lends_its_cpu)
            .modes(&[Mode::Embedded])
            .cpus(1.0)
            .budget(limits::BUDGET),
        case!(limits::actors_that_flood_each_other_go_on),
        case!(limits::circles_of_shared_calls_go_on),
        case!(limits::circles_of_exclusive_calls_end),
        case!(memory::a_process_is_held_to_its_memory),
        case!(memory::an_actor_is_held_to_its_memory),
        case!(blocks::a_pool_shares_work),
        case!(blocks::a_pool_counts_calls_from_when_it_chooses),
        case!(blocks::a_pool_loses_no_result_that_nobody_took),
        case!(blocks::a_queue_passes_items),
        case!(blocks::a_queue_waits_no_longer_than_it_may),
        case!(blocks::an_item_that_nobody_got_stays_in_its_place),
        case!(blocks::impatient_consumers_lose_nothing),
        case!(blocks::a_semaphore_bounds),
        case!(blocks::a_dead_holders_permits_come_back),
        case!(blocks::a_barrier_lets_all_go_on_or_none),
        case!(blocks::a_barrier_counts_who_is_there),
        case!(blocks::packed_values_keep_their_refs),
        case!(cancelling::async_code_is_dropped_at_its_await),
        case!(cancelling::what_waits_never_runs).cpus(1.0),
        case!(cancelling::sync_code_is_asked),
        case!(cancelling::sync_code_that_waits_is_woken).cpus(4.0),
        case!(cancelling::force_needs_a_process),
        case!(cancelling::time_runs_out),
        case!(expiring::what_a_late_call_kept_is_there).modes(PROCESSES),
        case!(expiring::one_that_does_not_stop_keeps_no_other_waiting).cpus(2.0),
        case!(expiring::a_process_that_does_not_stop_serves_no_other).cpus(1.0),
        case!(expiring::an_actor_that_comes_too_late_does_not_live),
        case!(expiring::a_killed_construction_that_does_not_stop_serves_no_other).cpus(1.0),
        case!(dying::a_task_is_tried_again),
        case!(dying::attempts_end),
        case!(dying::actors_end_with_their_owner),
        case!(inheriting::values_outlive_their_owners).cpus(4.0),
        case!(inheriting::values_outlive_the_nodes_of_their_owners).modes(RIG).cpus(4.0).fresh(),
        case!(inheriting::a_result_to_come_is_lost_with_its_owner).cpus(4.0),
        case!(dying::an_actor_starts_again),
        case!(dying::restarts_end),
        case!(dying::calls_allowed_at_least_once_are_tried_again),
        case!(dying::a_killed_host_is_replaced).modes(RIG),
        case!(dying::a_killed_node_is_replaced).modes(RIG).fresh(),
        case!(losing::a_task_waits_for_an_argument_that_died_with_it).modes(RIG).fresh(),
        case!(losing::a_borrowers_arguments_are_made_again).modes(RIG).fresh(),
        case!(losing::a_borrowers_arguments_are_found_where_they_moved).modes(RIG).fresh(),
        case!(draining::a_node_that_drains_loses_nothing).modes(RIG).fresh(),
        case!(draining::what_was_inherited_moves_too).modes(RIG).fresh(),
        case!(draining::what_hosts_there_own_moves_too).modes(RIG).fresh(),
        case!(draining::what_is_left_at_the_end_is_taken_away).modes(RIG).fresh(),
        case!(draining::a_node_may_stay_after_all).modes(RIG).fresh(),
        case!(stopping::a_stopped_host_goes_on).modes(STOPPABLE),
        case!(stopping::a_stopped_host_loses_none_of_many_calls).modes(&[Mode::Socket]),
        case!(stopping::callers_of_a_stopped_host_wait_and_others_do_not).modes(&[Mode::Socket]),
        case!(stopping::room_that_is_kept_for_a_stopped_caller_goes_to_others).modes(&[Mode::Socket]),
        case!(stopping::hosts_that_hold_each_other_back_go_on).modes(EVERYWHERE),
        case!(stopping::hosts_on_two_nodes_that_flood_each_other_go_on).modes(&[Mode::Local]),
        case!(stopping::nodes_with_all_ways_full_between_them_go_on).modes(RIG),
        case!(stopping::a_stopped_agent_goes_on).modes(STOPPABLE),
        case!(stopping::steady_calls_never_wait_for_the_head).modes(STOPPABLE),
        case!(stopping::steady_calls_never_touch_the_head).modes(EVERYWHERE),
        case!(stopping::a_stopped_head_goes_on).modes(STOPPABLE),
        case!(stopping::what_runs_alone_outlives_who_stands_still).modes(RIG),
        case!(telling::a_panic_names_its_place),
        case!(telling::an_error_keeps_its_causes),
        case!(telling::a_failed_argument_fails_what_needs_it),
        case!(telling::errors_name_their_cure).modes(EVERYWHERE),
        case!(telling::errors_are_retried_on_request),
        case!(telling::a_failing_actor_lives_on),
        case!(placing::resources_bound_what_runs_at_once).resources(&[("token", 1.0)]),
        case!(placing::memory_is_admitted).resources(&[("memory", 4.0 * 1024.0 * 1024.0 * 1024.0)]),
        case!(placing::tasks_go_where_their_arguments_are),
        case!(placing::tasks_do_not_wait_for_the_node_of_their_arguments).modes(PROCESSES),
        case!(placing::fractions_and_zero).cpus(1.0),
        case!(placing::the_impossible_is_named),
        case!(placing::what_waits_behind_slow_work_goes_to_another_node).modes(PROCESSES).cpus(1.0),
        case!(placing::labels_choose).labels(&[("disk", "fast")]),
        case!(placing::mistakes_are_reported_by_the_ref),
        case!(placing::what_is_granted_is_what_the_process_sees).cpus(2.0).resources(DEVICES),
        case!(placing::each_that_runs_alone_has_a_process).cpus(2.0),
        case!(placing::devices_are_shared_out_and_never_twice).resources(DEVICES),
        case!(explaining::owner_and_scheduler_both_say).cpus(1.0),
        case!(grouping::bundles_are_used_and_given_back),
        case!(grouping::what_runs_inside_ends_with_it),
        case!(grouping::a_flood_passes_nobody_over),
        case!(grouping::impossible_groups_are_named),
        case!(grouping::a_waiting_group_says_why),
        case!(grouping::bundles_lie_as_asked).modes(RIG),
        case!(grouping::a_lost_bundle_is_reserved_again).modes(RIG).fresh(),
        case!(sharing::queues_bound_and_are_shown).queues(sharing::queues),
        case!(sharing::what_matters_more_takes_room).cpus(1.0),
        case!(sharing::what_matters_more_takes_no_more_than_it_needs).cpus(4.0).modes(EVERYWHERE),
        case!(sharing::what_was_borrowed_is_given_back).cpus(2.0).queues(sharing::guaranteed),
        case!(sharing::an_unknown_queue_is_named).queues(sharing::queues),
        case!(pinning::spread_and_affinity).modes(PROCESSES),
        case!(pinning::kin_stay_apart),
        case!(pinning::a_preference_is_no_condition),
        case!(pinning::labels_choose_among_nodes).modes(RIG),
        case!(pinning::labels_have_fallbacks).modes(RIG).labels(&[("disk", "fast")]),
        case!(pinning::waiting_for_a_node_is_explained).modes(RIG).fresh(),
    ]
}

/// Scenarios that bring their own processes.
pub const SOLOS: &[Solo] = &[
    solo!(driver::output_reaches_the_driver),
    solo!(driver::the_last_line_reaches_the_driver),
    solo!(driver::every_last_line_reaches_the_driver),
    solo!(driver::a_killed_driver_ends_its_job),
    solo!(driver::an_interrupted_driver_ends_its_job),
    solo!(driver::an_interrupted_driver_need_not_listen),
    solo!(driver::a_panicking_main_ends_its_job),
    solo!(driver::an_exit_ends_the_job),
    solo!(driver::a_returning_main_ends_its_job),
    solo!(driver::a_failing_main_says_why),
    solo!(detaching::a_detached_actor_serves_the_next_driver),
    solo!(lending::jobs_exchange_large_values),
    solo!(files::files_travel_with_the_job),
    solo!(files::a_changed_file_is_refused),
    solo!(files::open_files_stay_with_their_opener),
    solo!(files::a_replaced_program_goes_on),
    solo!(inheriting::a_detached_actor_keeps_what_a_driver_left),
    solo!(inventory::objects_are_shown_with_what_made_them),
    solo!(inventory::what_holds_an_object_is_shown),
    solo!(isolation::nobody_can_write_what_is_shared),
    solo!(isolation::a_stranger_gets_nothing),
    solo!(isolation::a_job_gets_nothing_of_another),
    solo!(leaks::a_file_that_no_agent_counts_is_found),
    solo!(forging::a_job_forges_in_vain),
    solo!(joining::tokens_are_for_one),
    solo!(joining::strangers_are_refused),
    solo!(joining::an_unknown_head_is_named),
    solo!(memory::a_killed_agents_groups_are_removed),
    solo!(transfer::a_broadcast_is_shared_by_its_readers),
    solo!(salvaging::what_others_have_read_outlives_its_node),
    solo!(transfer::a_transfer_outlives_its_source),
    solo!(transfer::a_transfer_outlives_a_source_that_has_a_part),
    solo!(transfer::what_is_fetched_takes_no_slot),
    solo!(grouping::detached_groups_outlive_their_job),
    solo!(pressure::an_author_says_when_objects_are_spilled),
    solo!(sharing::a_job_belongs_to_a_queue),
    solo!(ui::the_compiler_refuses_with_a_reason),
];
