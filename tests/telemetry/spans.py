"""Spans as a collector got them."""

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


def spans_of(received):
    """(service, component, span) of each."""
    found = []
    for export in list(received):
        if not isinstance(export, ExportTraceServiceRequest):
            continue
        for resource in export.resource_spans:
            who = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                names = who.get("service.name"), who.get("expertmesh.component")
                found += [(*names, span) for span in scope.spans]
    return found


def attributes_of(span):
    return {a.key.removeprefix("expertmesh."): a.value.int_value for a in span.attributes}
