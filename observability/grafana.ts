// Grafana's own types for what the dashboards' JSON says, so that the compiler finds a misspelt or unknown field.
import type { AnnotationQuery, Dashboard, DataQuery } from "@grafana/schema";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

/** JSON has the text of an enum where the types have the enum. */
type Json<T> = T extends string
  ? `${T}`
  : T extends (infer Element)[]
    ? Json<Element>[]
    : T extends object
      ? { [Key in keyof T]: Json<T[Key]> }
      : T;

/** A panel states only what differs from its defaults. */
type Stated<T> = T extends unknown[] ? T : T extends object ? { [Key in keyof T]?: Stated<T[Key]> } : T;

/** The general query of an annotation knows nothing of Prometheus's fields. */
type Annotation = Omit<Json<AnnotationQuery>, "target"> & {
  target: Json<DataQuery> & { expr: string; legendFormat: string };
};

export type DashboardFile = Omit<Json<Dashboard>, "annotations"> & { annotations: { list: Annotation[] } };

/** Of each kind of panel: its options, and its part of the field configuration. */
export interface Panels {
  heatmap: { options: Stated<Json<heatmap.Options>>; custom: Stated<Json<heatmap.FieldConfig>> };
  stat: { options: Stated<Json<stat.Options>>; custom: Record<string, never> };
  table: { options: Stated<Json<table.Options>>; custom: Stated<Json<table.FieldConfig>> };
  timeseries: { options: Stated<Json<timeseries.Options>>; custom: Stated<Json<timeseries.FieldConfig>> };
}
