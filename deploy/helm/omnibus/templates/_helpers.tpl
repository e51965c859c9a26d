{{- define "omnibus.labels" -}}
app.kubernetes.io/name: omnibus
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}
{{- define "omnibus.name" -}}
{{ printf "%s-%s" .root.Release.Name .component | lower | replace "_" "-" | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- /* The pod of a role: image, credentials, security; `args`, `ports`, and more of the container come from the caller. */ -}}
{{- define "omnibus.env" -}}
- {name: OMNIBUS_NATS_URL, value: {{ .root.Values.nats.url | quote }}}
- {name: OMNIBUS_NATS_REPLICAS, value: {{ .root.Values.nats.replicas | quote }}}
- {name: OMNIBUS_LOG_FORMAT, value: json}
- {name: OMNIBUS_STATE_DIR, value: /tmp/state}
- {name: OMNIBUS_METRICS_HOST, value: 0.0.0.0}
{{- with .root.Values.tracing.endpoint }}
- {name: OMNIBUS_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- if .credentials }}
- {name: OMNIBUS_NATS_CREDENTIALS, value: /etc/omnibus/nats}
{{- end }}
{{- end }}
{{- define "omnibus.container" -}}
securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
{{- end }}
{{- define "omnibus.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .credentials }}
- {name: nats, mountPath: /etc/omnibus/nats, readOnly: true}
{{- end }}
{{- end }}
{{- define "omnibus.volumes" -}}
- {name: tmp, emptyDir: {}}
{{- if .credentials }}
- {name: nats, secret: {secretName: {{ .credentials }}, defaultMode: 0440}}
{{- end }}
{{- end }}
{{- define "omnibus.pod" -}}
securityContext: {runAsNonRoot: true, runAsUser: 10001, fsGroup: 10001, seccompProfile: {type: RuntimeDefault}}
automountServiceAccountToken: false
{{- /* Else a Service called omnibus-nats would set OMNIBUS_NATS_PORT, to an address. */}}
enableServiceLinks: false
{{- end }}
