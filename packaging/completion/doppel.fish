# SPDX-License-Identifier: Apache-2.0
# fish completion of doppel(1)

complete -c doppel -f
complete -c doppel -n __fish_use_subcommand -a run -d 'Run a machine in the foreground'
complete -c doppel -n __fish_use_subcommand -a img -d 'Work on disk images'
complete -c doppel -n '__fish_seen_subcommand_from img' -F -a 'create info check convert compare map measure resize rebase commit snapshot amend bitmap dd bench serve'
for flag in f O F
    complete -c doppel -n '__fish_seen_subcommand_from img' -s $flag -x -a 'raw qcow2 vdi vhdx vpc vmdk luks parallels ova qed' -d 'Format'
end
complete -c doppel -n __fish_use_subcommand -a ls -d 'List the machines that run'
complete -c doppel -n __fish_use_subcommand -a status -d 'Say what a machine is doing'
complete -c doppel -n __fish_use_subcommand -a pause -d 'Halt a machine'
complete -c doppel -n __fish_use_subcommand -a resume -d 'Let a paused machine go on'
complete -c doppel -n __fish_use_subcommand -a save -d 'Save a machine to a file'
complete -c doppel -n __fish_use_subcommand -a stop -d 'Press the power button of a machine'
complete -c doppel -n __fish_use_subcommand -l version -d 'Say which version this is'
complete -c doppel -s h -l help -d 'Say what options there are'

function __doppel_run
    complete -c doppel -n '__fish_seen_subcommand_from run' $argv
end

__doppel_run -s k -l kernel -r -F -d 'Kernel to boot'
__doppel_run -s i -l initrd -r -F -d 'Initial ramdisk'
__doppel_run -s a -l append -x -d 'Kernel command line'
__doppel_run -l module -r -F -d 'Multiboot module with its arguments'
__doppel_run -s m -l memory -x -d 'Guest memory, for example 512M'
__doppel_run -s c -l cpus -x -d 'Number of virtual CPUs'
__doppel_run -l cpu -x -a 'x86-64-v1 x86-64-v2 x86-64-v3 x86-64-v4 host' -d 'CPU model'
__doppel_run -l time -x -a 'real virtual' -d 'What the clocks of the guest follow'
__doppel_run -l engine -x -a 'auto kvm translator interpreter' -d 'What executes guest code'
__doppel_run -l console -x -a 'stdio pty file: socket: none' -d 'Where the first serial port goes'
__doppel_run -l disk -r -F -d 'Disk behind virtio-blk, with its options'
__doppel_run -l object -x -d 'Secret for an encrypted disk: secret,id=ID,file=FILE'
__doppel_run -l net -x -a 'none user user,forward=tcp:2222:22' -d 'Network card'
__doppel_run -l rng -d 'Entropy device'
__doppel_run -l virtio-console -x -a 'stdio pty file: socket: none' -d 'Where the console hvc0 goes'
__doppel_run -l name -x -d 'Name of the machine'
__doppel_run -l restore -r -F -d 'Go on with a saved machine'
__doppel_run -l restore-clock -x -a 'catch-up continue' -d 'Time of the restored guest'
__doppel_run -l no-reboot -d 'End when the guest reboots'
__doppel_run -l debug-exit -d 'Device that ends the machine with a code'
__doppel_run -l check -d 'Compare the translator with the interpreter'
__doppel_run -l translator -x -a 'no-stack-page no-stack-pointer no-groups no-flags no-flag-operands no-slots no-lend no-links no-branches no-shared-branches no-far-links no-paired-returns no-fixed-code no-huge-code no-cold-apart no-long-blocks no-loops loop-threshold= chaos= cache= jitdump=' -d 'For work on the translator'
__doppel_run -l stats -d 'Print counters at the end'
__doppel_run -l profile -r -F -d 'Write where CPU time went at the end'
__doppel_run -l profile-symbols -r -F -d 'Names of guest addresses'
__doppel_run -l dry-run -d 'Print the machine description and exit'
__doppel_run -l log -x -a 'trace debug info warning error off' -d 'What is logged'

functions -e __doppel_run

function __doppel_names
    doppel ls 2>/dev/null | sed '1d; s/ .*//'
end

for command in status pause resume save stop
    complete -c doppel -n "__fish_seen_subcommand_from $command" -a '(__doppel_names)'
end
complete -c doppel -n '__fish_seen_subcommand_from save' -F
complete -c doppel -n '__fish_seen_subcommand_from save' -l stop -d 'End the machine afterwards'
complete -c doppel -n '__fish_seen_subcommand_from status' -l json -d 'Print JSON'
complete -c doppel -n '__fish_seen_subcommand_from stop' -l now -d 'Do not ask the guest'
complete -c doppel -n '__fish_seen_subcommand_from stop' -l timeout -x -d 'How long to wait'
