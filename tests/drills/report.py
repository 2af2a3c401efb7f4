"""What a drill leaves behind."""
import json
def write_text(drill):
    out=[f"{drill.name} {drill.passed} {drill.seconds:.0f}s {drill.verdict} req {drill.requests} failed {drill.failed}"]
    for c in drill.cases:
        out.append(f"  {c.name} {c.figures}")
        for k in c.checks: out.append(f"     {'ok ' if k.holds else 'BAD'} {k.what} {k.measured} {k.comparison} {k.limit}")
    for c in drill.controls: out.append(f"  control {c.name} {c.measured} {c.damage}")
    return "\n".join(out)+"\n"
def write_files(drill, folder): pass
