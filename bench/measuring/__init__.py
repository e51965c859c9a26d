"""The instruments that all benches share: load, rounds, CPU and memory of processes, messages, tasks, the machine."""
